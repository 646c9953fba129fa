#pragma once

#include <cstdint>

namespace hxq {

/// The largest resident set of this process so far.
int64_t peak_memory_bytes();

}  // namespace hxq
