#pragma once

#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// The lower part of x is kept this much larger than it is, clear of binary16's subnormal numbers.
inline constexpr float kLowPartScale = 1.0f / 2048;

/// x as the tensor cores take it, and the memory that blocks share: x = scale (upper + kLowPartScale lower), with a
/// power of two for each token that brings its largest element into [2^14, 2^15).
struct PackedX {
  void* packed = nullptr;   // [tiles, chunks, columns, kChunkCols] binary16, placed as packed_x.h says
  float* scales = nullptr;  // [tiles * tile_tokens]
  float* transposed =
      nullptr;  // [cols, transposed_stride] x / channel_scales in full, where there are outliers; or null
  int64_t transposed_stride = 0;
  float* partial_sums = nullptr;  // [blocks, 2, columns / 2, threads]: of tiles that several blocks share
  uint32_t* counters = nullptr;   // [tiles] blocks that are done with a tile: zeros
};

/// What a plan needs, and where it lies.
size_t packed_x_bytes(const GemmPlan& plan) noexcept;
PackedX place_packed_x(const GemmPlan& plan, bool outliers, const Workspace& workspace) noexcept;

Status pack_x(const LinearArgs& args, const CodebookWeight& weight, const GemmPlan& plan, const PackedX& x,
              Stream stream) noexcept;

}  // namespace hxq::cuda
