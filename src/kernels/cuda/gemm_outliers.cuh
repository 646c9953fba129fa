// What outliers add to the products of gemm.cu and tile_gemm.cu.

#pragma once

#include "kernels/cuda/gemm_shared.cuh"

namespace hxq::cuda::gemm {

/// Where what outliers add to the cluster's tile is, in units of its sums: [rows of the tile, tokens of the tile].
__device__ inline float* outlier_sums(const Parameters& p) {
  return p.x.outlier_sums + p.cluster() * p.plan.tile_rows() * p.plan.tile_tokens();
}

/// The block's part of the cluster's tile: of which rows and tokens outliers are added up.
struct PartOutliers {
  const Parameters& p;
  const Part& part;
  const int64_t tile;
  int begin, rows;

  __device__ PartOutliers(const Parameters& p, const Part& part, int64_t tile) : p(p), part(part), tile(tile) {
    const int split = static_cast<int>(hopper::block_in_cluster()), tile_rows = p.plan.tile_rows();
    begin = tile_rows * split / p.plan.splits;
    rows = tile_rows * (split + 1) / p.plan.splits - begin;
  }
  __device__ int64_t first_row() const { return p.plan.first_row(tile) + begin; }
  __device__ int first_token(int tokens) const { return static_cast<int>(p.plan.token_tile(tile)) * tokens; }
  __device__ const CodebookWeight& weight() const { return part.product.weight; }
  __device__ float inverse_scale() const { return part.inverse_level_scale; }
  /// All tokens' x of a column, of which the tile's begin at `first_token`.
  template <class T>
  __device__ const T* x_of(uint32_t col, int first_token) const {
    return static_cast<const T*>(p.x.transposed) + col * p.plan.padded_tokens() + first_token;
  }
  __device__ float* sums_of(int row, int tokens) const { return outlier_sums(p) + (begin + row) * tokens; }
};

/// Works out what outliers add while others multiply: three warps. x of their columns comes by bulk copies, a piece of
/// the outliers after the other; groups of threads take turns with the rows. `Work`: as above.
template <class Work, class T, int kTokens, int kPieceBytes>
class OutlierAdder {
 public:
  /// `thread`: of kAdders.
  __device__ OutlierAdder(const Work& work, OutlierMemory<kPieceBytes>& memory, int thread)
      : work_(work), memory_(memory), thread_(thread) {}

  /// `piece`: pieces that went before; returns their number with those of this work.
  __device__ uint32_t add(uint32_t piece) {
#pragma unroll 1
    for (int i = thread_; i <= work_.rows; i += kAdders) {
      memory_.row_begin[i] = work_.weight().outlier_row_begin[min(work_.first_row() + i, work_.weight().rows)];
    }
    barrier();
    first_token_ = work_.first_token(kTokens);
    row_ =
        kGroups * kGroupThreads == kAdders || thread_ < kGroups * kGroupThreads ? thread_ / kGroupThreads : work_.rows;
    const uint32_t last = memory_.row_begin[work_.rows];
    uint32_t first = memory_.row_begin[0];
    if (first < last) {
      fetch(first, last);
      bring(first, last, piece);
      barrier();  // the changes are there; those of further pieces, by the barrier of the piece before
    }
#pragma unroll 1
    for (; first < last; first += kPiece, ++piece) {
      if (first + kPiece < last) bring(first + kPiece, last, piece + 1);
      hopper::wait(&memory_.full[piece % 2], piece / 2 % 2);
      add_piece(first, min(last, first + kPiece), piece % 2);
      barrier();
    }
    while (row_ < work_.rows) finish_row();
    return piece;
  }

 private:
  static constexpr int kOwn = kTokens >= 32 ? 4 : kTokens / 8;  ///< tokens of a thread
  static constexpr int kGroupThreads = kTokens / kOwn;
  static constexpr int kGroups = kAdders / kGroupThreads;
  static constexpr int kBytes = kTokens * static_cast<int>(sizeof(T));  ///< of an outlier
  static constexpr uint32_t kPiece = kPieceBytes / kBytes < kAdders ? kPieceBytes / kBytes : kAdders;  ///< outliers

  __device__ void barrier() const { asm volatile("bar.sync 2, %0;" ::"n"(kAdders) : "memory"); }

  /// The thread's outlier of a piece that will be brought.
  __device__ void fetch(uint32_t first, uint32_t last) {
    const uint32_t own = first + static_cast<uint32_t>(thread_);
    if (static_cast<uint32_t>(thread_) >= kPiece || own >= last) return;
    col_ = work_.weight().outlier_col[own];
    change_ = work_.weight().outlier_change[own];
  }

  __device__ void bring(uint32_t first, uint32_t last, uint32_t piece) {
    const uint32_t count = min(kPiece, last - first);
    uint64_t* full = &memory_.full[piece % 2];
    if (thread_ == 0) hopper::arrive_and_expect_bytes(full, count * kBytes);
    if (static_cast<uint32_t>(thread_) < count) {
      memory_.change[piece % 2][thread_] = change_ * work_.inverse_scale();
      const T* x = work_.template x_of<T>(col_, first_token_);
      hopper::copy_bulk(memory_.x[piece % 2] + thread_ * kBytes, x, kBytes, full);
    }
    fetch(first + kPiece, last);
  }

  __device__ void finish_row() {
    float* out = work_.sums_of(row_, kTokens) + thread_ % kGroupThreads * kOwn;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) out[k] = sum_[k], sum_[k] = 0;
    row_ += kGroups;
  }

  /// The group's rows, as far as the piece goes.
  __device__ void add_piece(uint32_t first, uint32_t end, int half) {
    const T* x = reinterpret_cast<const T*>(memory_.x[half]) + thread_ % kGroupThreads * kOwn;
#pragma unroll 1
    while (row_ < work_.rows && memory_.row_begin[row_] < end) {
      const uint32_t row_end = memory_.row_begin[row_ + 1], stop = min(row_end, end);
#pragma unroll(kTokens >= 64 ? 1 : 4)
      for (uint32_t i = max(memory_.row_begin[row_], first) - first; i < stop - first; ++i) {
        const float change = memory_.change[half][i];
#pragma unroll
        for (int k = 0; k < kOwn; ++k) sum_[k] = fmaf(change, static_cast<float>(x[i * kTokens + k]), sum_[k]);
      }
      if (row_end > end) return;
      finish_row();
    }
  }

  const Work work_;
  OutlierMemory<kPieceBytes>& memory_;
  const int thread_;
  int first_token_ = 0, row_ = 0;
  uint32_t col_ = 0;
  float change_ = 0;
  float sum_[kOwn] = {};
};

}  // namespace hxq::cuda::gemm
