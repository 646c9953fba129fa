#pragma once

#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// The lower part of x is kept this much larger than it is, clear of binary16's subnormal numbers.
inline constexpr float kLowPartScale = 1.0f / 2048;

/// x as the tensor cores take it: x = scale (upper + kLowPartScale lower), with a power of two for each token that
/// brings its largest element into [2^14, 2^15).
struct PackedX {
  void* packed = nullptr;   // [token tiles, padded chunks, columns, kChunkCols] binary16, placed as packed_x.h says
  float* scales = nullptr;  // [padded tokens]
  /// x / scale where there are outliers, or null: [cols, padded tokens] binary16, float for two parts.
  void* transposed = nullptr;
  float* outlier_sums = nullptr;  // [clusters, rows of a tile, tokens of a tile], or null
  uint32_t* counters = nullptr;   // [counter_count], set to 0
  int64_t counter_count = 0;
};

/// Workspace for products of up to `tokens` tokens, and what lies where in it. `clusters`: of a plan, at most.
size_t packed_x_bytes(int64_t cols, int64_t tokens, int64_t clusters) noexcept;
PackedX place_packed_x(const GemmPlan& plan, bool outliers, const Workspace& workspace) noexcept;

Status pack_x(const LinearArgs& args, const CodebookWeight& weight, const GemmPlan& plan, const PackedX& x,
              Stream stream) noexcept;

}  // namespace hxq::cuda
