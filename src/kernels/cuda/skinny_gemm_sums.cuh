// What a block of the product for few tokens has in shared memory, and the sums of rows over warps and blocks.

#pragma once

#include "kernels/cuda/cluster_rows.cuh"
#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/skinny_gemm_plan.h"

namespace hxq::cuda::skinny {

constexpr int kThreads = SkinnyPlan::kThreads;

struct Parameters {
  Input x;
  int tokens;
  SkinnyPlan plan;
  int parts;
  ClusterPart part[kMaxFusedProducts];
};

/// Where what lies in dynamic shared memory, in bytes. The table begins at a multiple of its size; in its gaps lie the
/// first arrays of slots: 16 bytes for each thread.
namespace layout {
constexpr int kItems = 5;  ///< of a warp, on their way: a tile and a unit each
constexpr uint32_t kArrayBytes = 16 * kThreads;
constexpr uint32_t kTileSums = 0;
constexpr uint32_t kOwnSums = kTileSums + SkinnyPlan::kMostTileSums * sizeof(float);
constexpr uint32_t kLowerSlots = kOwnSums + SkinnyPlan::kMostOwnSums * sizeof(float);  ///< of an item
constexpr uint32_t kStart = 1024;                                                      ///< of dynamic shared memory
constexpr uint32_t kTable = SpreadTable::kBytes - kStart;                              ///< in its gaps, two items
constexpr uint32_t kUpperSlots = kTable + SpreadTable::kBytes;                         ///< of two items
constexpr uint32_t kX = kUpperSlots + 4 * kArrayBytes;  ///< [units, token tiles, parts, 4, 32 lanes] of 16 bytes
constexpr uint32_t kBytes = kX + SkinnyPlan::kMostUnits * 2048;
static_assert(kLowerSlots + 2 * kArrayBytes <= kTable && kBytes <= 227 * 1024);
}  // namespace layout

__device__ inline float* shared_floats(uint32_t offset) { return reinterpret_cast<float*>(dynamic_shared + offset); }

__device__ inline int first_token(const Parameters& p) { return static_cast<int>(blockIdx.y) * p.plan.tokens(); }

/// The 16 bytes of x of a unit and token tile that lane `lane` takes first; the others are 32 places apart each.
template <bool kTwoParts>
__device__ uint4* lane_x(int unit_tile, int part, int lane) {
  return reinterpret_cast<uint4*>(dynamic_shared + layout::kX) + (unit_tile * (kTwoParts ? 2 : 1) + part) * 128 + lane;
}

/// x of a token and a column of the block's part.
template <int kTokenTiles, bool kTwoParts>
__device__ float held_x(int token, uint32_t col) {
  const int unit_tile = static_cast<int>(col / SkinnyPlan::kUnitCols) * kTokenTiles + token / SkinnyPlan::kTokens;
  const int lane = token % SkinnyPlan::kTokens * 4 + static_cast<int>(col % 64 / 16);
  const auto place = col % 16 / 4 * 128 + col % 4;
  float x = reinterpret_cast<const float*>(lane_x<kTwoParts>(unit_tile, 0, lane))[place];
  if constexpr (kTwoParts) x += reinterpret_cast<const float*>(lane_x<kTwoParts>(unit_tile, 1, lane))[place];
  return x;
}

/// The sums of a cluster's blocks, and what rows have beside their levels.
template <int kTokenTiles, bool kTwoParts>
class Sums {
 public:
  __device__ Sums(const Parameters& p, const FusedProduct& product, const ClusterRows& rows)
      : p_(p),
        product_(product),
        weight_(product.weight),
        rows_(rows),
        first_col_(static_cast<uint32_t>(rows.block * p.plan.units * SkinnyPlan::kUnitCols)),
        cols_(static_cast<uint32_t>(p.plan.units * SkinnyPlan::kUnitCols)) {}

  /// Brings what is stored of the cluster's outliers to the second-level cache.
  __device__ void prefetch() const {
    if (!weight_.outlier_row_begin) return;
    const uint32_t begin = __ldg(weight_.outlier_row_begin + rows_.first);
    const uint32_t end = __ldg(weight_.outlier_row_begin + rows_.first + rows_.count);
    constexpr uint32_t kLine = 32;  // words
    const uint32_t thread = threadIdx.x * p_.plan.cluster + rows_.block;
#pragma unroll 1
    for (uint32_t i = begin + thread * kLine; i < end; i += kThreads * p_.plan.cluster * kLine) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(weight_.outlier_col + i));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(weight_.outlier_change + i));
    }
  }

  /// Adds up what the warps have left of the tiles of a round, and the outliers of the block's columns, and gives it to
  /// the blocks that finish the rows.
  __device__ void add_up_round(int round, int pass) const {
    constexpr int kPairs = kTokenTiles * SkinnyPlan::kTokens / 2;  // of tokens
    constexpr int kStride = kTokenTiles * SkinnyPlan::kTokens * SkinnyPlan::kSumPitch;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int item = static_cast<int>(threadIdx.x) / 32; item < p_.plan.row_groups * p_.plan.round_tiles * kPairs;
         item += SkinnyPlan::kWarps) {
      const int tile = item / kPairs, token = item % kPairs * 2 + lane / 16;
      const int row = round * p_.plan.round_rows() + tile * SkinnyPlan::kTileRows + lane % 16;
      if (row >= rows_.count) continue;
      const float* from = shared_floats(layout::kTileSums) + (tile << p_.plan.col_groups_log2) * kStride +
                          token * SkinnyPlan::kSumPitch + lane % 16;
      float sum = outliers(rows_.first + row, token);
#pragma unroll 1
      for (int i = 0; i < p_.plan.col_groups(); ++i) sum += from[i * kStride];
      const int in_pass = row - pass * p_.plan.pass_rows(), owner = p_.plan.owner_of(in_pass);
      hopper::store_to_block(sum_at(rows_.block, token, in_pass - owner * p_.plan.own_rows), owner, sum);
    }
  }

  /// Finishes the block's rows of a pass.
  __device__ void write(int pass) const {
    const int first_row = pass * p_.plan.pass_rows() + rows_.block * p_.plan.own_rows;
    const int end = min(rows_.count, (pass + 1) * p_.plan.pass_rows());
    const int count = min(p_.plan.own_rows, end - first_row);
    const int tokens = min(p_.plan.tokens(), p_.tokens - first_token(p_));
#pragma unroll 1
    for (int t = static_cast<int>(threadIdx.x) / 32; t < tokens; t += SkinnyPlan::kWarps) {
#pragma unroll 1
      for (int row = static_cast<int>(threadIdx.x) % 32; row < count; row += 32) {
        const int64_t in_matrix = rows_.first + first_row + row;
        float sum = add_beside(product_, in_matrix, first_token(p_) + t, 0);
#pragma unroll 1
        for (int i = 0; i < p_.plan.cluster; ++i) sum += *sum_at(i, t, row);
        store_at(product_.y, first_token(p_) + t, in_matrix, sum);
      }
    }
  }

 private:
  __device__ float* sum_at(int block, int token, int row) const {
    return shared_floats(layout::kOwnSums) + (block * p_.plan.tokens() + token) * p_.plan.own_rows + row;
  }
  /// Of a row, with x as it lies in shared memory.
  __device__ float outliers(int64_t row, int token) const {
    if (!weight_.outlier_row_begin) return 0;
    constexpr int kAtOnce = 4;
    const uint32_t begin = __ldg(weight_.outlier_row_begin + row), end = __ldg(weight_.outlier_row_begin + row + 1);
    float sum = 0;
#pragma unroll 1
    for (uint32_t first = begin; first < end; first += kAtOnce) {
      uint32_t col[kAtOnce];
      float change[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t at = min(first + i, end - 1);
        col[i] = __ldg(weight_.outlier_col + at) - first_col_;  // those before wrap round
        change[i] = __ldg(weight_.outlier_change + at);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < end && col[i] < cols_)
          sum = fmaf(change[i], held_x<kTokenTiles, kTwoParts>(token, col[i]), sum);
      }
    }
    return sum;
  }

  const Parameters& p_;
  const FusedProduct& product_;
  const CodebookWeight& weight_;
  const ClusterRows& rows_;
  const uint32_t first_col_, cols_;
};

}  // namespace hxq::cuda::skinny
