// What the warps of tile_gemm.cu share: parameters, the order of the work, and where things lie in shared memory.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemm_outliers.cuh"
#include "kernels/cuda/hopper_cluster.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/pack_x.cuh"
#include "kernels/cuda/tile_gemm_plan.h"

namespace hxq::cuda::tiles {

inline constexpr int kGroup = 128;               ///< threads of a warpgroup
inline constexpr int kMultipliers = 2 * kGroup;  ///< the first threads of a block: 64 rows a warpgroup
inline constexpr int kThreads = 3 * kGroup;      ///< the last ones bring what is multiplied, and add up outliers
inline constexpr int kRows = TileGemmPlan::kRows;
inline constexpr int kCols = TileGemmPlan::kChunkCols;
inline constexpr int kByteChunks = 2;  ///< whose bytes come together

/// Of a tile, the first of the two rows of a thread of the warpgroups; the other one is 8 further. Of a warp's eight
/// groups of four lanes two neighbours have rows four apart, which lie in different banks (tensor_map.h).
__device__ inline int own_row() {
  const int group = static_cast<int>(threadIdx.x) % 32 / 4;
  return static_cast<int>(threadIdx.x) / 32 * 16 + group % 2 * 4 + group / 2;
}

struct Parameters {
  CUtensorMap map;  ///< of the matrix's bytes
  CodebookWeight weight;
  float scale, inverse_scale;  ///< what levels are divided by: a power of two
  Output y;
  bool y_is_aligned;  ///< rows of y, for four elements at a time
  bool plain_y;       ///< F32, aligned with all of its rows, and neither what was there nor a low-rank term is added
  const float* bias;
  const float* low_rank_product;
  int64_t tokens;
  bool accumulate;
  TileGemmPlan plan;
  int64_t padded_tokens;
  PackedX x;            // outlier_sums: [blocks, 2, kRows, columns]
  float* partial_sums;  // [tiles, splits, columns, kRows]
  uint32_t* counters;   // [tiles] splits that are done: zeros
};

/// Outliers of a tile's rows, as words (tile_outliers.cuh).
struct OutlierList {
  static constexpr int kReady = 3264;  ///< further ones are fetched when it is their turn

  uint32_t first;  ///< of the matrix's
  uint32_t row_begin[kRows + 1];
  uint32_t word[kReady];
};

/// The units that a block works on.
struct Cursor {
  const TileGemmPlan& plan;
  const int slot;
  int unit, row_tile, token_tile, split, chunk, end;
  int turn = 0;  ///< units before this one

  __device__ explicit Cursor(const TileGemmPlan& plan)
      : plan(plan),
        slot(plan.share == 2 ? static_cast<int>(blockIdx.x % 2) : 0),
        unit(static_cast<int>(plan.share == 2 ? blockIdx.x / 2 : blockIdx.x)) {
    start_unit();
  }
  __device__ bool done() const { return unit >= plan.units(); }
  __device__ void start_unit() {
    split = plan.split_of(unit);
    row_tile = plan.row_tile_of(unit, slot);
    token_tile = plan.token_tile_of(unit);
    chunk = plan.first_chunk(split);
    end = plan.first_chunk(split + 1);
  }
  __device__ void next_unit() {
    unit += plan.clusters;
    ++turn;
    start_unit();
  }
  __device__ int64_t tile() const { return int64_t{row_tile} * plan.token_tiles + token_tile; }
  /// Where what outliers add to the block's rows is: that of the next unit is written while this one's is read.
  __device__ int64_t outlier_sums_place() const { return int64_t{blockIdx.x} * 2 + turn % 2; }
  __device__ int64_t first_row() const { return int64_t{row_tile} * kRows; }
  __device__ int64_t first_token() const { return int64_t{token_tile} * plan.columns; }
};

/// Where things lie in shared memory, as addresses: the table wants a multiple of its size.
template <int kN>
struct Layout {
  /// Registers that a thread starts with. Up to 128 tokens leave room on the multiprocessor for the kernel that packs
  /// x.
  static constexpr int kRegisters = kN <= 128 ? 128 : 168;
  // These are shared anew.
  static constexpr int kMultiplierRegisters = kN <= 64 ? 152 : kN <= 128 ? 168 : 224;
  static constexpr int kBringerRegisters = 3 * kRegisters - 2 * kMultiplierRegisters;
  static constexpr int kXBytes = kN * kCols * 2;      ///< of one chunk of packed x
  static constexpr int kXChunks = kN <= 128 ? 2 : 1;  ///< that come together
  static constexpr int kXStages = kN <= 64 ? 4 : kN <= 128 ? 3 : 4;
  static constexpr int kXStageBytes = kXChunks * kXBytes;
  static constexpr int kByteTile = kByteChunks * kRows * kCols;
  /// Many of few tokens, so that they come while x is packed.
  static constexpr int kByteStages = kN <= 64 ? 5 : kN <= 128 ? 3 : 2;
  static constexpr int kPieceBytes = 12288;
  using AddedOutliers = gemm::OutlierMemory<kPieceBytes>;
  static constexpr uint32_t kStart = 1024;  ///< of dynamic shared memory
  static constexpr uint32_t kOutliers = kStart, kBarriers = kOutliers + 27 * 1024;
  static constexpr uint32_t kTable = 32768, kX = kTable + NarrowTable::kBytes, kBytes = kX + kXStages * kXStageBytes;
  static constexpr size_t kDynamicBytes = kBytes + kByteStages * kByteTile - kStart;
  static_assert(sizeof(AddedOutliers) <= kBarriers - kOutliers && 2 * sizeof(OutlierList) <= kBarriers - kOutliers &&
                kDynamicBytes <= 226 * 1024);

  __device__ static unsigned char* at(uint32_t address) { return dynamic_shared + (address - kStart); }
  /// Of two units in turn.
  __device__ static OutlierList& outlier_list(int half) { return reinterpret_cast<OutlierList*>(at(kOutliers))[half]; }
  __device__ static AddedOutliers& added_outliers() { return *reinterpret_cast<AddedOutliers*>(at(kOutliers)); }
  __device__ static unsigned char* x(int stage) { return at(kX) + stage * kXStageBytes; }
  __device__ static unsigned char* bytes(int stage) { return at(kBytes) + stage * kByteTile; }
  __device__ static uint64_t* full_x(int stage) { return reinterpret_cast<uint64_t*>(at(kBarriers)) + stage; }
  __device__ static uint64_t* empty_x(int stage) { return full_x(stage) + kXStages; }
  __device__ static uint64_t* full_bytes(int stage) { return full_x(stage) + 2 * kXStages; }
  __device__ static uint64_t* empty_bytes(int stage) { return full_bytes(stage) + kByteStages; }
  /// Of the tokens of a tile, those of the matrix included.
  __device__ static float* scales() { return reinterpret_cast<float*>(at(kBarriers + 1024)); }
  /// All that read a unit's sums where x was are done.
  __device__ static uint64_t* drained() { return full_bytes(2 * kByteStages); }
  /// Splits that were done with a tile before.
  __device__ static uint32_t& arrived() { return *reinterpret_cast<uint32_t*>(drained() + 1); }
};

/// Tells who brings x, in both blocks where they share it. All lanes of a warp together.
__device__ inline void tell_bringers(const TileGemmPlan& plan, uint64_t* barrier) {
  const uint32_t lane = threadIdx.x % 32;
  if (plan.share == 1) {
    if (lane == 0) hopper::arrive(barrier);
  } else if (lane < 2) {
    hopper::arrive_at_block(barrier, lane);
  }
}

template <int kBarrier, int kCount>
__device__ inline void group_barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kCount) : "memory");
}

}  // namespace hxq::cuda::tiles
