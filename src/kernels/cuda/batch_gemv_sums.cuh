// What a block of the GEMV of a few tokens has in shared memory, and the sums of rows over warps and blocks.

#pragma once

#include "kernels/cuda/batch_gemv_plan.h"
#include "kernels/cuda/cluster_rows.cuh"
#include "kernels/cuda/codebook_lookup.cuh"

namespace hxq::cuda::batch {

constexpr int kThreads = BatchGemvPlan::kThreads;
constexpr int kReadyOutliers = 640;  ///< of a block and a pass, brought before they are needed

struct Parameters {
  Input x;
  int tokens;
  BatchGemvPlan plan;
  int last_rows;  ///< of a block: successors may begin when it comes to them
  int parts;
  ClusterPart part[kMaxFusedProducts];
};

/// What a block keeps in shared memory. In the table's gaps lie four arrays of 16 bytes a thread: those of the upper
/// rows of items, and sums of tiles of even rounds. As many behind it are those of the lower rows, and sums of odd
/// rounds.
struct Memory {
  static constexpr int kItems = 3;  ///< of a warp, on their way: a tile and a unit each
  static constexpr uint32_t kUpperStride = 16 * kThreads / SpreadTable::kGap * SpreadTable::kEntryBytes;
  static_assert((kItems + 1) * kUpperStride <= SpreadTable::kBytes);
  static_assert(BatchGemvPlan::kWarps * BatchGemvPlan::kTileSums * sizeof(float) <= 16 * kThreads);

  alignas(1024) unsigned char table[SpreadTable::kBytes];
  uint4 lower[kItems + 1][kThreads];
  /// [block of the cluster, token, row]: what each block has added up of what this one finishes.
  float own_sums[BatchGemvPlan::kPassRows * BatchGemvPlan::kTokens];
  uint32_t row_begin[BatchGemvPlan::kPassRows + 1];  ///< of the cluster's rows of a pass
  uint32_t col[kReadyOutliers];
  float change[kReadyOutliers];
  uint64_t outliers_came;                ///< of a pass
  uint64_t sums_left[2], sums_taken[2];  ///< of tiles, of every other round
  uint64_t pass_done;                    ///< counts the bytes that other blocks have sent of a pass
};

__device__ inline Memory& memory() { return *reinterpret_cast<Memory*>(dynamic_shared); }

/// Where warps leave the sums of their tiles of a round: the 32 of two tokens lie together, turned so that lanes that
/// store together have banks of their own.
struct TileSums {
  unsigned char* first;
  int stride_log2;

  __device__ explicit TileSums(int round) {
    const bool odd = round % 2 != 0;
    first = odd ? reinterpret_cast<unsigned char*>(memory().lower[Memory::kItems])
                : memory().table + Memory::kItems * Memory::kUpperStride + SpreadTable::kGap;
    stride_log2 = odd ? 7 : 8;
  }
  __device__ float& at(int warp, int token, int row) const {
    const int pair = token / 2, place = (token % 2 * 16 + row + pair * 8) % 32;
    return *reinterpret_cast<float*>(first + ((warp * 4 + pair) << stride_log2) + place * 4);
  }
};

/// The sum of every 2^step_log2-th of some outliers, times the token's x; several elements are asked for at once.
__device__ inline float multiply_outliers(const Input& x, int token, const uint32_t* col, const float* change,
                                          int step_log2, int count) {
  constexpr int kAtOnce = 4;
  const int64_t first = x.stride * token;
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < count; i += kAtOnce) {
    uint32_t bits[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + j >= count) break;
      const int64_t at = first + col[(i + j) << step_log2];
      bits[j] =
          x.dtype == DType::f32 ? static_cast<const uint32_t*>(x.data)[at] : static_cast<const uint16_t*>(x.data)[at];
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + j >= count) break;
      const float value = x.dtype == DType::f32    ? __uint_as_float(bits[j])
                          : x.dtype == DType::bf16 ? __uint_as_float(bits[j] << 16)
                                                   : __half2float(__ushort_as_half(static_cast<uint16_t>(bits[j])));
      sum = fmaf(change[(i + j) << step_log2], value, sum);
    }
  }
  return sum;
}

/// The sums of a cluster's blocks, and what rows have beside their levels.
class Sums {
 public:
  __device__ Sums(const Parameters& p, const ClusterPart& part) : p_(p), part_(part) {}

  /// Worked out anew each time, which takes no register.
  __device__ ClusterRows rows() const { return ClusterRows(part_, hopper::cluster_number()); }

  /// Before the block's threads have met.
  __device__ void init() const {
    if (threadIdx.x != 0) return;
    hopper::init_barrier(&memory().outliers_came, kThreads);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      hopper::init_barrier(&memory().sums_left[i], kThreads);
      hopper::init_barrier(&memory().sums_taken[i], adding_threads());
    }
    hopper::init_barrier(&memory().pass_done, 1);
    hopper::fence_barriers();
  }

  /// Begins a pass: tells how much the block gets of others, and asks for what is stored of the outliers that are its
  /// matter. Those of the cluster's rows go round its blocks.
  __device__ void begin_pass(int pass) const {
    const OwnRows own(*this, pass);
    if (threadIdx.x == 0 && own.count > 0) {
      const int values = own.count * p_.tokens * (p_.plan.cluster() - 1);
      hopper::arrive_and_expect_bytes(&memory().pass_done, static_cast<uint32_t>(values) * sizeof(float));
    }
    const CodebookWeight& weight = part_.product.weight;
    if (!weight.outlier_row_begin) return;
    const ClusterRows rows = this->rows();
    const int first_row = pass * p_.plan.pass_rows(), count = min(p_.plan.pass_rows(), rows.count - first_row);
    const uint32_t* row_begin = weight.outlier_row_begin + rows.first + first_row;
    const uint32_t first = __ldg(row_begin) + static_cast<uint32_t>(rows.block), end = __ldg(row_begin + count);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i <= count; i += kThreads) {
      copy_async<4>(memory().row_begin + i, row_begin + i);
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < kReadyOutliers; i += kThreads) {
      const uint32_t at = first + (i << p_.plan.cluster_log2);
      if (at >= end) break;
      copy_async<4>(memory().col + i, weight.outlier_col + at);
      copy_async<4>(memory().change + i, weight.outlier_change + at);
    }
    hopper::arrive_after_copies(&memory().outliers_came);
  }

  /// What a warp leaves of a round may be written.
  __device__ void wait_for_room(int round) const {
    if (round >= 2) hopper::wait(&memory().sums_taken[round % 2], static_cast<uint32_t>(round / 2 - 1) % 2);
  }
  /// The thread has left all that it has of a round.
  __device__ void leave(int round) const {
    __syncwarp();  // one instruction for all lanes
    hopper::arrive(&memory().sums_left[round % 2]);
  }

  /// Adds up what the warps have left of the tiles of a round, and gives it to the blocks that finish the rows. If not
  /// all warps are needed they take turns: what delays some of them in a round should not delay them in the next.
  __device__ void add_up_round(int round, int pass) const {
    const int i = (static_cast<int>(thread_of_block()) - round * adding_threads()) & (kThreads - 1);
    if (i >= adding_threads()) return;
    const ClusterRows rows = this->rows();
    const TileSums sums(round);
    const int group = i / BatchGemvPlan::kTileSums, in_tile = i % BatchGemvPlan::kTileRows;
    const int token = i % BatchGemvPlan::kTileSums / BatchGemvPlan::kTileRows;
    const int row = round * p_.plan.round_rows() + group * BatchGemvPlan::kTileRows + in_tile;
    const int in_pass = row - pass * p_.plan.pass_rows();
    const bool exists = row < rows.count && token < p_.tokens;
    const float beside = exists ? outliers(pass, in_pass, token, rows.block) : 0;
    hopper::wait(&memory().sums_left[round % 2], static_cast<uint32_t>(round / 2) % 2);
    if (exists) {
      float sum = 0;
#pragma unroll 4
      for (int c = 0; c < p_.plan.col_groups(); ++c) {
        sum += sums.at((group << p_.plan.col_groups_log2) + c, token, in_tile);
      }
      sum = fmaf(sum, part_.product.weight.level_scale, beside);
      const int owner = p_.plan.owner_of(in_pass);
      float* to = sum_at(rows.block, token, in_pass - owner * p_.plan.own_rows);
      if (owner == rows.block) {
        *to = sum;
      } else {
        const auto block = static_cast<uint32_t>(owner);
        hopper::store_there(hopper::address_in_block(to, block), sum,
                            hopper::address_in_block(&memory().pass_done, block));
      }
    }
    __syncwarp();
    hopper::arrive(&memory().sums_taken[round % 2]);
  }

  /// Finishes the block's rows of a pass, once all blocks have sent their sums. A pass of -1 is none: it brings the
  /// instructions.
  __device__ void write(int pass) const {
    const OwnRows own(*this, max(pass, 0));
    if (own.count <= 0) return;
    if (pass >= 0) hopper::wait(&memory().pass_done, static_cast<uint32_t>(pass % 2));
    const FusedProduct& product = part_.product;
    constexpr int kThreadsOfToken = kThreads / BatchGemvPlan::kTokens;
    const auto thread = static_cast<int>(thread_of_block());
    const int token = thread / kThreadsOfToken;
    if (token >= p_.tokens) return;
#pragma unroll 1
    for (int row = thread % kThreadsOfToken; row < own.count; row += kThreadsOfToken) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < BatchGemvPlan::kMostCluster; ++i) {
        if (i < p_.plan.cluster()) sum += *sum_at(i, token, row);
      }
      if (pass < 0) return;
      const int64_t in_matrix = own.in_matrix + row;
      store_at(product.y, token, in_matrix, add_beside(product, in_matrix, token, sum));
    }
  }

 private:
  /// The rows of a pass that the block finishes.
  struct OwnRows {
    int count, block;
    int64_t in_matrix;

    __device__ OwnRows(const Sums& sums, int pass) {
      const BatchGemvPlan& plan = sums.p_.plan;
      const ClusterRows rows = sums.rows();
      block = rows.block;
      const int first = pass * plan.pass_rows() + block * plan.own_rows;
      count = min(plan.own_rows, min(rows.count, (pass + 1) * plan.pass_rows()) - first);
      in_matrix = rows.first + first;
    }
  };

  /// What those of the block's outliers add that are in a row of the pass.
  __device__ float outliers(int pass, int row, int token, int block) const {
    const CodebookWeight& weight = part_.product.weight;
    if (!weight.outlier_row_begin) return 0;
    hopper::wait(&memory().outliers_came, static_cast<uint32_t>(pass % 2));
    const uint32_t first = memory().row_begin[0] + static_cast<uint32_t>(block);
    const int log2 = p_.plan.cluster_log2;
    const auto before = [&](int r) {  // of the block's
      return (static_cast<int>(memory().row_begin[r] - first) + p_.plan.cluster() - 1) >> log2;
    };
    const int begin = before(row), end = before(row + 1);
    const bool ready = end <= kReadyOutliers;
    const uint32_t* col = ready ? memory().col + begin : weight.outlier_col + first + (begin << log2);
    const float* change = ready ? memory().change + begin : weight.outlier_change + first + (begin << log2);
    return multiply_outliers(p_.x, token, col, change, ready ? 0 : log2, end - begin);
  }

  /// Threads that add up a round, whole warps: one for each of its sums.
  __device__ int adding_threads() const { return p_.plan.row_groups() * BatchGemvPlan::kTileSums; }

  /// What block `block` has added up for a row that this one finishes.
  __device__ float* sum_at(int block, int token, int row) const {
    return memory().own_sums + (block * BatchGemvPlan::kTokens + token) * p_.plan.own_rows + row;
  }

  const Parameters& p_;
  const ClusterPart& part_;
};

}  // namespace hxq::cuda::batch
