#pragma once

#include <cstddef>
#include <memory>

#include "kernels/kernels.h"

namespace hxq::kernels {

/// Measures how fast this machine reads memory now, as the yardstick of operations that read all weights once. On a
/// shared machine the rate drifts: measure right before and after what is compared with it.
class ReadBandwidth {
 public:
  /// Allocates and touches a buffer of `bytes`, best far above the caches. `target`: one of supported_targets().
  ReadBandwidth(int threads, Target target, size_t bytes = size_t{256} << 20);

  /// Bytes per second of one pass over the buffer by all threads together, each reading its own part; the best of
  /// `passes`. The buffer has pages of the default size, as a mapped file has.
  double measure(int passes = 1);

 private:
  int threads_;
  Target target_;
  size_t bytes_;
  std::unique_ptr<std::byte[]> buffer_;
};

}  // namespace hxq::kernels
