#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/team.h"

namespace hxq::kernels {

/// Memory that operations share across calls: one area per purpose for the whole team, and one per thread. Areas grow
/// on demand and keep their size, so that nothing is allocated once every operation has run at its largest shape.
/// Running out of memory ends the program (`std::terminate`): operations are noexcept.
class Scratch {
 public:
  /// Areas of the whole team, so that an operation may use several at once.
  enum Area { kScaledInput, kPackedInput, kLowRankProduct, kDecodedPanel, kAreas };

  /// For teams of at most `threads` threads.
  explicit Scratch(int threads) : own_(static_cast<size_t>(threads)) {}

  /// `floats` floats, 64-byte aligned, the same for all threads; contents are undefined. Called by the whole team with
  /// the same arguments, and not while a thread may still use the area. May pass barriers.
  float* shared(Area area, size_t floats, const Team& team) noexcept {
    Buffer& buffer = shared_[area];
    if (buffer.floats < floats) {
      team.barrier();  // all threads have seen the old size
      if (team.rank() == 0) buffer.grow(floats);
      team.barrier();
    }
    return buffer.data.get();
  }

  /// `floats` floats of the calling thread's own, 64-byte aligned; contents are undefined.
  float* own(size_t floats, const Team& team) noexcept {
    Buffer& buffer = own_[static_cast<size_t>(team.rank())];
    if (buffer.floats < floats) buffer.grow(floats);
    return buffer.data.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const noexcept;
  };
  struct alignas(64) Buffer {
    std::unique_ptr<float[], Free> data;
    size_t floats = 0;
    void grow(size_t wanted) noexcept;
  };
  Buffer shared_[kAreas];
  std::vector<Buffer> own_;
};

}  // namespace hxq::kernels
