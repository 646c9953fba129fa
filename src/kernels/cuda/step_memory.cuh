// How blocks of a step hand elements to each other, and what a block keeps in shared memory.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/numbered_words.cuh"
#include "kernels/cuda/step_program.h"

namespace hxq::cuda::step {

constexpr int kThreads = GemvPlan::kWarps * 32;  ///< that compute; another warp brings what they need
constexpr int kPartials = 1024;                  ///< sums of a row by one warp that wait for those of other warps
constexpr int kReadyOutliers = 512;              ///< of a block, found in shared memory
constexpr int kRowBegins = 512;                  ///< rows of a block, likewise
constexpr int kBaseRows = 1024;                  ///< rows that are finished together, at most
constexpr int kHeaders = 4;                      ///< operations on their way, at most
static_assert(kStepDbc <= kPartials, "the scan keeps dt, B and C there");
constexpr int kChunks = 8;  ///< on their way, at most

/// What an operation reads, wherever it comes from.
class Source {
 public:
  __device__ Source(const StepVector& vector, uint32_t done)
      : data_(vector.data), shared_(vector.shared), flag_(done + vector.operation) {}

  __device__ float at(int i) const { return shared_ ? wait_for_word(shared_ + i, flag_) : data_[i]; }

  /// Asks for elements 2 * i and 2 * i + 1; `take` waits until they are written.
  __device__ WordPair ask(int i) const {
    if (shared_) return load_pair(shared_ + 2 * i);
    const float2 pair = *reinterpret_cast<const float2*>(data_ + 2 * i);
    return {__float_as_uint(pair.x), __float_as_uint(pair.y)};
  }
  __device__ float2 take(int i, WordPair pair) const {
    if (shared_) {
      while (!is_from(pair.first, flag_) || !is_from(pair.second, flag_)) pair = load_pair(shared_ + 2 * i);
    }
    return make_float2(value_of(pair.first), value_of(pair.second));
  }

  /// Elements at(i), all of which are asked for at once; zeros where that is negative.
  template <int kCount, class At>
  __device__ void take_each(const At& at, float (&out)[kCount]) const {
    uint64_t element[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int from = at(i);
      element[i] = from < 0 ? 0 : shared_ ? load_word(shared_ + from) : __float_as_uint(data_[from]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int from = at(i);
      if (from >= 0 && shared_) {
        while (!is_from(element[i], flag_)) element[i] = load_word(shared_ + from);
      }
      out[i] = value_of(element[i]);
    }
  }

 private:
  const float* data_;
  const uint64_t* shared_;
  uint32_t flag_;
};

/// Writes element i of what operation `flag` computes.
__device__ inline void store(const StepOutput& y, int64_t i, float value, uint32_t flag) {
  if (y.data) y.data[i] = value;
  if (y.shared) store_word(y.shared + i, value, flag);
}

/// x in shared memory: the four quarters of all units apart, so that lanes that read units of their own find them in
/// different banks.
class SharedX {
 public:
  __device__ SharedX(float* data, int cols) : data_(data), quarter_((cols / GemvPlan::kUnitCols + 1) * 4) {}

  /// Where a column's element is; `of_place` reads it.
  __device__ uint32_t place(uint32_t col) const {
    return col / 4 % 4 * static_cast<uint32_t>(quarter_) + col / 16 * 4 + col % 4;
  }
  __device__ float of_place(uint32_t place) const { return data_[place]; }
  __device__ float at(uint32_t col) const { return of_place(place(col)); }
  /// Elements 2 * i and 2 * i + 1.
  __device__ void put_pair(int i, float a, float b) const {
    *reinterpret_cast<float2*>(data_ + i / 2 % 4 * quarter_ + i / 8 * 4 + i % 2 * 2) = make_float2(a, b);
  }
  __device__ void load(int unit, float (&out)[16]) const {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float4 v = *reinterpret_cast<const float4*>(data_ + q * quarter_ + unit * 4);
      out[4 * q] = v.x, out[4 * q + 1] = v.y, out[4 * q + 2] = v.z, out[4 * q + 3] = v.w;
    }
  }

 private:
  float* data_;
  int quarter_;
};

/// An operation as the block has it: what is read beside the weights.
struct alignas(16) Header {
  StepCommon common;
  StepPart part;
  StepScan scan;
  StepWork work;
  float* state;  ///< of the convolution or the scan
  alignas(16) float codebook[256];
  uint32_t begins[kRowBegins + 8];    ///< where the outliers of the block's first rows begin, in the matrix
  uint32_t cols[kReadyOutliers + 8];  ///< of the block's first outliers
  float changes[kReadyOutliers + 8];

  /// Copies begin at a multiple of four elements.
  __device__ uint32_t begin_of(int row) const {
    return row <= kRowBegins ? begins[work.first_row % 4 + row] : __ldg(part.outlier_row_begin + work.first_row + row);
  }
  /// Outlier i of the matrix times x.
  __device__ float outlier_product(uint32_t i, const SharedX& x) const {
    const uint32_t own = i - work.first_outlier, at = work.first_outlier % 4 + own;
    return own < kReadyOutliers ? changes[at] * x.at(cols[at])
                                : __ldg(part.outlier_change + i) * x.at(__ldg(part.outlier_col + i));
  }
};

/// What a block keeps in shared memory: then x, then the ring of weights.
struct Shared {
  alignas(1024) unsigned char table[SmallTable::kBytes];
  Header header[kHeaders];
  float partial[kPartials];
  float conv_sum[kBaseRows];        ///< of rows that a convolution takes: it but for its newest element
  float conv_tap[kBaseRows];        ///< and that element's tap
  float base[kBaseRows];            ///< what rows get beside their products: bias and earlier y
  float extra[kBaseRows];           ///< beside the codebook's weights, of products
  float squares[GemvPlan::kWarps];  ///< of x, by warps
  float low_rank[kGemvMaxRank];     ///< x times Vt
  uint64_t full[kChunks], empty[kChunks];
  uint64_t header_full[kHeaders], header_empty[kHeaders];
};

__device__ inline Shared& shared() { return *reinterpret_cast<Shared*>(dynamic_shared); }

/// A barrier of the threads that compute.
__device__ inline void sync_workers() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

/// Rows of a block that are finished together where warps share them: whole turns.
__device__ inline int rows_of_round(const GemvPlan& plan) {
  return min(kPartials / plan.groups, kBaseRows) / plan.turn_rows() * plan.turn_rows();
}

/// Bytes of weights on their way, in a ring of shared memory. Both sides walk through the same chunks.
struct Ring {
  uint32_t bytes;         ///< of the ring
  uint32_t position = 0;  ///< of the next chunk
  uint32_t chunk = 0;     ///< its number

  __device__ int slot() const { return static_cast<int>(chunk % kChunks); }
  /// Of the barriers of the slot: whether the number of its uses is odd.
  __device__ uint32_t parity() const { return chunk / kChunks % 2; }
  __device__ uint32_t wrapped(uint32_t at) const { return at >= bytes ? at - bytes : at; }
  __device__ void advance(uint32_t by) {
    position = wrapped(position + by);
    ++chunk;
  }
};

}  // namespace hxq::cuda::step
