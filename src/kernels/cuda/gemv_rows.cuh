// What a block of the codebook GEMV has beside its weights: its rows, shared memory, outliers, and sums of rows.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/linear.h"

namespace hxq::cuda::gemv {

constexpr int kThreads = GemvPlan::kThreads;
/// Sums of a row by one group that wait for those of other groups. So 22,016 rows of 4,096 columns are one round on 132
/// blocks.
constexpr int kPartials = 1344;
constexpr int kReadyOutliers = 1024;  ///< of a block, multiplied ahead
constexpr int kRowBegins = 512;       ///< rows of a block whose outliers are found in shared memory

/// One of the products, and the blocks that have it.
struct GemvPart {
  FusedProduct product;
  BlockShare share;
  int first_block;
};

struct GemvParameters {
  FusedInput input;
  GemvPlan plan;  ///< of all parts, but for their blocks
  int last_rows;  ///< of a block: successors may begin when it comes to them
  int round;      ///< rows that a block finishes together, whole steps
  int parts;
  GemvPart part[kMaxFusedProducts];
};

/// What a block keeps in shared memory, before its second half of slots.
struct GemvShared {
  alignas(1024) unsigned char table[SpreadTable::kBytes];  ///< and the first half of the slots
  float partial[kPartials];
  uint32_t col[kReadyOutliers];                        ///< of the block's first outliers
  float product[kReadyOutliers];                       ///< their change of the weight, then that times x
  uint32_t row_begin[kRowBegins + 1];                  ///< where the outliers of the block's first rows begin
  float squares[GemvPlan::kMaxGroups];                 ///< of x, by the groups that share a row
  float low_rank[kGemvMaxRank][GemvPlan::kMaxGroups];  ///< x times Vt, likewise
};

/// A thread has slots of 16 bytes in one or two halves.
constexpr int kHalfSlots = 4;
constexpr uint32_t kHalfBytes = kHalfSlots * 16 * kThreads;
constexpr int halves(int compute_capability) { return compute_capability >= 90 && compute_capability < 120 ? 2 : 1; }
#ifdef __CUDA_ARCH__
constexpr int kHalves = halves(__CUDA_ARCH__ / 10);
#else
constexpr int kHalves = halves(90);
#endif

/// What column `col` of the weight is multiplied with, but for the norm's common factor.
__device__ inline float input_at(const FusedInput& input, const CodebookWeight& weight, int64_t col) {
  float x = load_element(input.x.data, input.x.dtype, col);
  if (input.norm_weight) x *= input.norm_weight[col];
  return weight.channel_scales ? __fdividef(x, weight.channel_scales[col]) : x;
}

/// The rows of a block and their outliers.
struct BlockRows {
  int64_t first;
  int count;
  uint32_t first_outlier = 0, outliers = 0;

  __device__ explicit BlockRows(const GemvPart& part) {
    const int block = static_cast<int>(blockIdx.x) - part.first_block;
    first = part.share.begin(block);
    count = part.share.count(block);
  }

  __device__ void find_outliers(const CodebookWeight& weight) {
    if (!weight.outlier_row_begin) return;
    first_outlier = __ldg(weight.outlier_row_begin + first);
    outliers = __ldg(weight.outlier_row_begin + first + count) - first_outlier;
  }
};

/// Starts to bring what is stored of the block's first outliers.
__device__ inline void fetch_outliers(const CodebookWeight& weight, const BlockRows& rows, GemvShared& shared) {
  if (!weight.outlier_row_begin) return;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i <= min(rows.count, kRowBegins); i += kThreads) {
    copy_async<4>(shared.row_begin + i, weight.outlier_row_begin + rows.first + i);
  }
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < min(rows.outliers, uint32_t{kReadyOutliers}); i += kThreads) {
    copy_async<4>(shared.col + i, weight.outlier_col + rows.first_outlier + i);
    copy_async<4>(shared.product + i, weight.outlier_change + rows.first_outlier + i);
  }
  end_copy_group();
}

/// Multiplies them with x: each thread those that it fetched itself, before its last kLater groups of copies.
template <int kLater>
__device__ inline void multiply_outliers(const FusedInput& input, const CodebookWeight& weight, const BlockRows& rows,
                                         GemvShared& shared) {
  wait_for_copies<kLater>();
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < min(rows.outliers, uint32_t{kReadyOutliers}); i += kThreads) {
    shared.product[i] *= input_at(input, weight, shared.col[i]);
  }
}

/// The sum of what the groups that share a row left behind.
__device__ inline float sum_of_groups(const float* by_group, int groups) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < groups; ++i) sum += by_group[i];
  return sum;
}

/// What lane `lane` of `lanes` adds to a row of the block beside its codebook's weights.
__device__ inline float row_extras(const GemvParameters& p, const FusedProduct& product, const GemvShared& shared,
                                   const BlockRows& rows, int row, int lane, int lanes) {
  const CodebookWeight& weight = product.weight;
  float sum = 0;
  if (weight.outlier_row_begin) {
    const auto begin_of = [&](int i) {
      return (i <= kRowBegins ? shared.row_begin[i] : weight.outlier_row_begin[rows.first + i]) - rows.first_outlier;
    };
    const uint32_t end = begin_of(row + 1);
#pragma unroll 1
    for (uint32_t i = begin_of(row) + lane; i < end; i += lanes) {
      if (i < kReadyOutliers) {
        sum += shared.product[i];
      } else {
        const uint32_t at = rows.first_outlier + i;
        sum += weight.outlier_change[at] * input_at(p.input, weight, weight.outlier_col[at]);
      }
    }
  }
#pragma unroll 1
  for (int n = lane; n < weight.rank; n += lanes) {
    const float along =
        product.low_rank_product ? product.low_rank_product[n] : sum_of_groups(shared.low_rank[n], p.plan.groups);
    sum += weight.low_rank_u[(rows.first + row) * weight.rank + n] * along;
  }
  return sum;
}

/// Adds up what the groups left behind for rows [begin, end) of the block, and writes y.
__device__ inline void finish_rows(const GemvParameters& p, const FusedProduct& product, const GemvShared& shared,
                                   const BlockRows& rows, int begin, int end) {
  const int lanes_log2 = end - begin <= kThreads / 4 ? 2 : 0, lanes = 1 << lanes_log2;  ///< that share a row
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1), groups = p.plan.groups;
  float factor = 1;
  if (p.input.norm_weight) {
    const float mean = __fdividef(sum_of_groups(shared.squares, groups), static_cast<float>(product.weight.cols));
    factor = rsqrtf(mean + p.input.eps);
  }
#pragma unroll 1
  for (int first = begin; first < end; first += kThreads >> lanes_log2) {
    const int row = first + (static_cast<int>(threadIdx.x) >> lanes_log2);
    float sum = 0;
    if (row < end) {
      sum = row_extras(p, product, shared, rows, row, lane, lanes);
#pragma unroll 1
      for (int i = lane; i < groups; i += lanes) sum += shared.partial[(row - begin) * groups + i];
    }
    sum = factor * sum_lanes(sum, lanes);
    if (row < end && lane == 0) {
      const int64_t at = rows.first + row;
      if (product.bias) sum += product.bias[at];
      if (product.accumulate) sum += load_element(product.y.data, product.y.dtype, at);
      store_element(product.y.data, product.y.dtype, at, sum);
    }
  }
}

}  // namespace hxq::cuda::gemv
