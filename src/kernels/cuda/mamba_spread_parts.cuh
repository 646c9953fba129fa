// What the kernel of Mamba's layers for very few sequences is given, and the parts of its products.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/hopper_cluster.cuh"
#include "kernels/cuda/mamba_layers.h"
#include "kernels/cuda/mamba_layers_memory.cuh"
#include "kernels/cuda/mamba_spread_plan.h"
#include "kernels/cuda/numbered_words.cuh"

namespace hxq::cuda::mamba_spread_parts {

using mamba_layers_parts::floats;
using mamba_layers_parts::Layer;
using mamba_layers_parts::Matrix;
using Plan = MambaSpreadPlan;
using Tables = LevelTables<Plan::kTablesAt>;

__device__ inline int lane() { return static_cast<int>(thread_of_block()) % 32; }
__device__ inline int warp() { return static_cast<int>(thread_of_block()) / 32; }

using enum Plan::Product;
using Rows = MambaSpreadRows;

struct Parameters {
  Plan plan;
  const RowRange* segments;  // [sequences]
  float* h;
  int64_t h_stride;
  float eps;
  int sequences, layers;
  uint64_t* xz;      // [tokens, 2 * inner] what in_proj gives, each with the number of the layer that wrote it
  uint64_t* hidden;  // [tokens, hidden] the same of the hidden state
  uint32_t* epoch;   ///< layers that ran before
  Layer layer[kMostMambaLayers];
};
static_assert(sizeof(Parameters) <= 32 * 1024 - 4);  // of a kernel

/// A layer in shared memory: parameters of a kernel are read once a layer each, and come slowly.
struct SharedLayer : Layer {
  void* state_of[2][Plan::kMostTokens];  ///< of the sequences: of the convolution, and of the scan
};
static_assert(sizeof(SharedLayer) <= Plan::kLayerBytes);

/// What all threads of a block know.
struct Block {
  const Parameters& p;
  const Plan& plan;
  const int block, cluster, first_channel, own;  ///< channels

  __device__ explicit Block(const Parameters& parameters)
      : p(parameters),
        plan(p.plan),
        block(static_cast<int>(hopper::block_in_cluster())),
        cluster(static_cast<int>(blockIdx.x) / Plan::kBlocks),
        first_channel(plan.first_channel(block)),
        own(plan.channels_of(block)) {}

  __device__ Rows rows(int product) const { return plan.rows(product, cluster, block); }
  /// Columns of x_proj and out_proj are the block's channels.
  __device__ int first_col(int product) const { return product == kX || product == kOut ? first_channel : 0; }
  __device__ int cols(int product) const { return product == kIn ? plan.hidden : product == kDt ? plan.rank : own; }

  __device__ SharedLayer& layer(int number) const {
    return *reinterpret_cast<SharedLayer*>(dynamic_shared + plan.layers_at +
                                           number % Plan::kLayersThere * Plan::kLayerBytes);
  }
  __device__ uint32_t* begins_of(int number, int product) const {
    return reinterpret_cast<uint32_t*>(dynamic_shared + plan.lists_at +
                                       (number % 2 * kProducts + product) * Plan::kListBytes);
  }
  __device__ float* past_of(int number, int token) const {
    return floats(plan.past_at) + (number % 2 * plan.tokens + token) * (Plan::kTaps - 1) * plan.pitch();
  }
  __device__ float* states_of(int number, int token) const {
    return floats(plan.states_at) + (number % 2 * plan.tokens + token) * Plan::kStates * plan.pitch();
  }
  /// Row in the range << 16 | column, and change.
  __device__ uint2* list_of(int number, int product) const {
    return reinterpret_cast<uint2*>(begins_of(number, product) + Plan::kBeginsBytes / 4);
  }
  __device__ int row_of(int token) const {
    if (token >= p.sequences) return -1;
    const RowRange segment = p.segments[token];
    return segment.begin < segment.end ? segment.begin : -1;
  }

  /// What the warps wait for. Parts: of x_proj and out_proj, from the cluster. There: what is looked up, by those who
  /// bring it. Free: it has been read.
  enum Barrier {
    kXParts,
    kOutParts,
    kInThere,
    kListsThere,
    kXThere,
    kOutThere,
    kInFree,
    kXFree,
    kOutFree,
    kScanFree,
    kBarriers
  };

  __device__ uint64_t* barrier(int i) const {
    return reinterpret_cast<uint64_t*>(dynamic_shared + plan.barriers_at) + i;
  }
  __device__ void wait(Barrier i, int use) const { hopper::wait(barrier(i), static_cast<uint32_t>(use) % 2); }
};

inline constexpr uint32_t kNoOutlier = ~0u;

/// An outlier of the matrix as a block's list would have it, of rows from `row` on.
__device__ inline uint2 find_outlier(const Matrix& matrix, uint32_t at, int row, int first_col, int cols) {
  const uint32_t* end = matrix.outlier_row_begin + row + 1;
  int in_range = 0;
#pragma unroll 1
  while (__ldg(end + in_range) <= at) ++in_range;
  const int col = static_cast<int>(__ldg(matrix.outlier_col + at)) - first_col;
  if (col < 0 || col >= cols) return make_uint2(kNoOutlier, 0);
  return make_uint2(static_cast<uint32_t>(in_range << 16 | col), __float_as_uint(__ldg(matrix.outlier_change + at)));
}

/// Weights of some rows that a lane has looked up ahead: of each row four adjacent columns, and others kStepCols
/// further.
template <int kRows, int kSteps>
struct Weights {
  float level[kRows][kSteps][4];

  /// The lane's columns are from `col` on, as far as there are `cols`.
  __device__ void look_up(uint32_t table, uint32_t bytes_at, int pitch, int rows, int col, int cols) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        uint32_t word = 0;
        if (r < rows && col + s * Plan::kStepCols < cols) {
          word = *reinterpret_cast<const uint32_t*>(dynamic_shared + bytes_at + r * pitch + s * Plan::kStepCols + col);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) level[r][s][j] = Tables::look_up(table, word, j);
      }
    }
  }

  /// Adds to sums of rows and tokens. `x`: the lane's first four elements; other tokens lie `pitch` further.
  template <int kTokens, int kCount>
  __device__ void multiply(const float* x, int pitch, bool is_there, float (&sum)[kCount]) const {
    static_assert(kCount >= kRows * kTokens);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float4 v = make_float4(0, 0, 0, 0);
        if (is_there) v = *reinterpret_cast<const float4*>(x + t * pitch + s * Plan::kStepCols);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float& to = sum[r * kTokens + t];
          to = fmaf(level[r][s][0], v.x, to), to = fmaf(level[r][s][1], v.y, to);
          to = fmaf(level[r][s][2], v.z, to), to = fmaf(level[r][s][3], v.w, to);
        }
      }
    }
  }
};

}  // namespace hxq::cuda::mamba_spread_parts
