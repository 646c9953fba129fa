// What the decoding and the multiplying warps of tile_gemm.cu share.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/tile_gemm_plan.h"

namespace hxq::cuda::tiles {

inline constexpr int kGroup = 128;               ///< threads of a warpgroup
inline constexpr int kMultipliers = 2 * kGroup;  ///< the last threads of a block
inline constexpr int kRows = TileGemmPlan::kRows;
inline constexpr int kCols = TileGemmPlan::kChunkCols;
inline constexpr int kByteTile = kRows * kCols;
inline constexpr int kHalfTile = kRows / 2 * kCols * 2;  ///< bytes of the decoded rows of one multiplying warpgroup
inline constexpr int kReadyOutliers = 1024;              ///< of a tile, in shared memory

struct TileGemmParameters {
  CodebookWeight weight;
  Output y;
  const float* bias;
  const float* low_rank_product;
  int64_t tokens;
  bool accumulate;
  TileGemmPlan plan;
  const float* scales;  // [tokens] of x
  float* partial_sums;  // [units, columns / 2, kMultipliers]
  uint32_t* counters;   // [tiles] splits that are done: zeros
};

/// Tiles hold weights divided by this power of two: the largest level is in [2^6, 2^7) then, and binary16 has room for
/// outliers and for small levels on both sides.
__device__ inline float tile_scale_of(const CodebookWeight& weight) { return weight.level_scale * 256; }

template <int kN, bool kTwoLevels>
struct TileShared {
  static constexpr int kLevels = kTwoLevels ? 2 : 1;
  static constexpr int kXTile = kN * kCols * 2;
  static constexpr int kStageBytes = kLevels * 2 * kHalfTile + kXTile;
  static constexpr int kRoom = 227 * 1024 - 1024 - static_cast<int>(SmallTable::kBytes) - 8 * kReadyOutliers - 1024;
  static constexpr int kMostStages = (kRoom - 5 * kByteTile) / kStageBytes;
  static constexpr int kStages = kMostStages < 4 ? kMostStages : 4;
  static constexpr int kMostBytes = (kRoom - kStages * kStageBytes) / kByteTile;
  static constexpr int kBytes = kMostBytes < 8 ? kMostBytes : 8;  ///< tiles of bytes

  alignas(1024) unsigned char table[SmallTable::kBytes];
  unsigned char weights[kStages][kLevels][2][kHalfTile];
  unsigned char x[kStages][kXTile];
  unsigned char bytes[kBytes][kByteTile];  ///< every thread has slots of its own
  uint32_t outlier_col[kReadyOutliers];
  float outlier_change[kReadyOutliers];
  uint32_t outlier_row_begin[kRows + 1];
  uint64_t full[kStages], empty[kStages];
  uint32_t arrived;  ///< splits that were done with a tile before
};

/// The first threads of a block. Many tokens leave time enough for one warpgroup, and want its registers.
HXQ_HOST_DEVICE constexpr int decoders_for(int columns) { return columns > 128 ? kGroup : 2 * kGroup; }

template <int kBarrier, int kThreads>
__device__ inline void group_barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

/// The chunks that a block works on, in their order. What needs divisions is worked out once for a unit.
struct Cursor {
  const TileGemmPlan& plan;
  int64_t unit, tile, row;
  int chunk, end, token;

  __device__ explicit Cursor(const TileGemmPlan& plan) : plan(plan), unit(blockIdx.x) { start_unit(); }
  __device__ bool done() const { return unit >= plan.units(); }
  __device__ void start_unit() {
    const int split = plan.split_of(unit);
    tile = plan.tile_of(unit);
    row = plan.first_row(tile);
    token = static_cast<int>(plan.first_token(tile));
    chunk = plan.first_chunk(split);
    end = plan.first_chunk(split + 1);
  }
  __device__ void next_unit() {
    unit += gridDim.x;
    start_unit();
  }
  __device__ void advance() {
    if (++chunk == end) next_unit();
  }
};

}  // namespace hxq::cuda::tiles
