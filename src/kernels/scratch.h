#pragma once

#include <cstddef>
#include <vector>

#include "kernels/device.h"
#include "kernels/team.h"

namespace hxq::kernels {

/// Memory that operations of the CPU share across calls: one area per purpose for the whole team, and one per thread.
/// What is wanted is said first (see CpuContext::to_measure), then taken by `reserve`: operations cannot run out.
class Scratch {
 public:
  /// Areas of the whole team, so that an operation may use several at once.
  enum Area { kScaledInput, kPackedInput, kLowRankProduct, kDecodedPanel, kAreas };

  /// For teams of at most `threads` threads.
  explicit Scratch(int threads) : own_(static_cast<size_t>(threads)) {}

  void want_shared(Area area, int64_t floats) noexcept { shared_[area].want(floats); }
  void want_own(int64_t floats) noexcept { own_floats_ = floats > own_floats_ ? floats : own_floats_; }

  /// Takes the memory that is wanted. Throws `OutOfMemory`.
  void reserve();

  /// The area, 64-byte aligned, the same for all threads; contents are undefined. `floats`: at most what was wanted.
  float* shared(Area area, int64_t floats) noexcept { return shared_[area].at(floats); }

  /// Memory of the calling thread's own, 64-byte aligned; contents are undefined.
  float* own(int64_t floats, const Team& team) noexcept { return own_[static_cast<size_t>(team.rank())].at(floats); }

 private:
  struct alignas(64) Area_ {
    DeviceArray<float> memory = {};
    int64_t wanted = 0;
    void want(int64_t floats) noexcept { wanted = floats > wanted ? floats : wanted; }
    void reserve();
    float* at(int64_t floats) noexcept;
  };
  Area_ shared_[kAreas];
  std::vector<Area_> own_;
  int64_t own_floats_ = 0;
};

}  // namespace hxq::kernels
