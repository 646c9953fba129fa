#include "kernels/scratch.h"

#include <cassert>

namespace hxq::kernels {

void Scratch::Area_::reserve() {
  if (memory.size() < wanted) {
    memory = {};  // first, so that both are never held at once
    memory = DeviceArray<float>(cpu_device(), wanted, "the work memory of operations");
  }
}

float* Scratch::Area_::at([[maybe_unused]] int64_t floats) noexcept {
  assert(floats <= memory.size());
  return memory.data();
}

void Scratch::reserve() {
  try {
    for (Area_& area : shared_) area.reserve();
    for (Area_& area : own_) {
      area.want(own_floats_);
      area.reserve();
    }
  } catch (...) {
    // What could not be had is not asked for again by smaller steps.
    own_floats_ = 0;
    for (Area_& area : shared_) area.wanted = area.memory.size();
    for (Area_& area : own_) area.wanted = area.memory.size();
    throw;
  }
}

}  // namespace hxq::kernels
