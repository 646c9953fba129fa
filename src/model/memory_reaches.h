#pragma once

#include <new>

#include "hxq/error.h"

namespace hxq {

/// Does the work; false where memory, of the host or of a device, does not reach for it.
template <class Work>
bool memory_reaches(const Work& work) {
  try {
    work();
    return true;
  } catch (const OutOfMemory&) {
    return false;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace hxq
