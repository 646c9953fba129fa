// Outliers of the product for many tokens: put in their places among the weights that tile_gemm.cu looks up, or, where
// binary16 does not hold them, multiplied in float beside it.

#pragma once

#include "kernels/cuda/tile_gemm_shared.cuh"

namespace hxq::cuda::tiles {

inline constexpr uint32_t kNoOutlier = 0xffffffffu;

/// An outlier of a row as a word: its column, and how much it is more than its level, of binary16. Words of a row
/// ascend as their columns do.
__device__ inline uint32_t outlier_word(const CodebookWeight& weight, float inverse_scale, uint32_t index) {
  return weight.outlier_col[index] << 16 |
         __half_as_ushort(__float2half_rn(weight.outlier_change[index] * inverse_scale));
}

/// Three warps: the words of a block's units, ahead of the warps that multiply.
template <int kN>
__device__ void list_outliers(const Parameters& p, int thread) {
  int half = 0;
  for (Cursor at(p.plan); !at.done(); at.next_unit(), half ^= 1) {
    OutlierList& list = Layout<kN>::outlier_list(half);
    const uint32_t* begin = p.weight.outlier_row_begin;
    const uint32_t first = begin[min(at.first_row(), p.weight.rows)];
    for (int i = thread; i <= kRows; i += gemm::kAdders) {
      list.row_begin[i] = begin[min(at.first_row() + i, p.weight.rows)] - first;
    }
    list.first = first;
    const uint32_t count = begin[min(at.first_row() + kRows, p.weight.rows)] - first;
#pragma unroll 8
    for (uint32_t i = static_cast<uint32_t>(thread); i < min(count, uint32_t{OutlierList::kReady});
         i += gemm::kAdders) {
      list.word[i] = outlier_word(p.weight, p.inverse_scale, first + i);
    }
    group_barrier<3, kMultipliers + gemm::kAdders>();
  }
}

/// The outliers of a thread's two rows.
template <int kN>
class OutlierPlacer {
 public:
  __device__ explicit OutlierPlacer(const Parameters& p) : p_(p) {}

  /// Of a tile, from chunk `chunk` on. `row`: in it; the other one is 8 further.
  __device__ void start(int row, int chunk) {
    half_ ^= 1;
    limit_ = static_cast<uint32_t>(chunk * kCols) << 16;
    const OutlierList& list = Layout<kN>::outlier_list(half_);
    group_barrier<3, kMultipliers + gemm::kAdders>();  // it is there
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      next_[k] = list.row_begin[row + 8 * k];
      end_[k] = list.row_begin[row + 8 * k + 1];
      word_[k] = word_at(k);
      while (word_[k] < limit_) skip(k);
    }
  }

  /// Adds those of the next chunk to the left operands of its products.
  __device__ void place(uint32_t (&weights)[4][4]) {
    limit_ += static_cast<uint32_t>(kCols) << 16;
    while (__any_sync(kAllLanes, min(word_[0], word_[1]) < limit_)) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (word_[k] >= limit_) continue;
        const uint32_t byte = word_[k] >> 16 & (kCols - 1);  // of the chunk's row: its lane has sixteen
        const uint32_t added = byte % 2 ? word_[k] << 16 : word_[k] & 0xffffu;
        const uint32_t pair = byte / 16 == threadIdx.x % 4 ? byte % 16 / 2 : 8;
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
          uint32_t& halves = weights[i / 2][i % 2 * 2 + k];
          const uint32_t more = pair == i ? added : 0;
          const __half2 sum = __hadd2(reinterpret_cast<const __half2&>(halves), reinterpret_cast<const __half2&>(more));
          halves = reinterpret_cast<const uint32_t&>(sum);
        }
        skip(k);
      }
    }
  }

 private:
  __device__ uint32_t word_at(int k) const {
    if (next_[k] >= end_[k]) return kNoOutlier;
    const OutlierList& list = Layout<kN>::outlier_list(half_);
    if (next_[k] < OutlierList::kReady) return list.word[next_[k]];
    return outlier_word(p_.weight, p_.inverse_scale, list.first + next_[k]);
  }
  __device__ void skip(int k) {
    ++next_[k];
    word_[k] = word_at(k);
  }

  const Parameters& p_;
  int half_ = 1;
  uint32_t limit_ = 0;  ///< the column at which the next chunk ends, as a word
  uint32_t next_[2], end_[2], word_[2];
};

/// The block's part of a tile's rows, for `gemm::OutlierAdder`.
struct TileOutliers {
  const Parameters& p;
  const Cursor& at;
  int begin, rows;

  __device__ TileOutliers(const Parameters& p, const Cursor& at) : p(p), at(at) {
    begin = p.plan.first_outlier_row(at.split);
    rows = p.plan.first_outlier_row(at.split + 1) - begin;
  }
  __device__ const CodebookWeight& weight() const { return p.weight; }
  __device__ float inverse_scale() const { return p.inverse_scale; }
  __device__ int64_t first_row() const { return at.first_row() + begin; }
  __device__ int first_token(int) const { return static_cast<int>(at.first_token()); }
  template <class T>
  __device__ const T* x_of(uint32_t col, int first_token) const {
    return static_cast<const T*>(p.x.transposed) + col * p.padded_tokens + first_token;
  }
  __device__ float* sums_of(int row, int tokens) const {
    return p.x.outlier_sums + (at.outlier_sums_place() * kRows + begin + row) * tokens;
  }
};

/// Three warps: what outliers add, in float.
template <int kN>
__device__ void add_outliers(const Parameters& p, int thread) {
  using L = Layout<kN>;
  uint32_t piece = 0;
  for (Cursor at(p.plan); !at.done(); at.next_unit()) {
    using Adder = gemm::OutlierAdder<TileOutliers, __half, kN, L::kPieceBytes>;
    piece = Adder({p, at}, L::added_outliers(), thread).add(piece);
    group_barrier<3, kMultipliers + gemm::kAdders>();
  }
}

}  // namespace hxq::cuda::tiles
