// Matrices in the source's own type, and what the codebook kernels share with them.

#pragma once

#include "kernels/cpu/gemv-inl.h"

namespace hxq::kernels::cpu {
namespace {

struct F32 {
  static constexpr int64_t kBytes = 4;
  static VecF load_vec(const std::byte* from) { return load(from); }
};

struct F16 {
  static constexpr int64_t kBytes = 2;
  static VecF load_vec(const std::byte* from) { return load_f16(from); }
};

struct Bf16 {
  static constexpr int64_t kBytes = 2;
  static VecF load_vec(const std::byte* from) {
    typedef uint16_t Half __attribute__((vector_size(HXQ_LANES * 2)));
    Half bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return from_bits(__builtin_convertvector(bits, VecI) << 16);
  }
};

/// The first n < kLanes elements; the others are 0.
template <class Type>
VecF load_some(const std::byte* from, int64_t n) {
  alignas(64) std::byte padded[HXQ_LANES * Type::kBytes] = {};
  __builtin_memcpy(padded, from, static_cast<size_t>(n * Type::kBytes));
  return Type::load_vec(padded);
}

/// Adds the products of vector `turn` of two from `col` on, which has n columns, of kRows rows with kTokens tokens.
template <class Type, int kRows, int kTokens, int kTurn>
HXQ_ALWAYS_INLINE void add_vector(VecF (&sum)[kRows][kTokens][2], const std::byte* const* w, const float* x,
                                  int64_t x_stride, int64_t col, int64_t n) {
  VecF x_part[kTokens];
#pragma GCC unroll 3
  for (int t = 0; t < kTokens; ++t) {
    x_part[t] = n == kLanes ? load(x + t * x_stride + col) : load_first(x + t * x_stride + col, n);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    const std::byte* from = w[i] + col * Type::kBytes;
    VecF part = n == kLanes ? Type::load_vec(from) : load_some<Type>(from, n);
    keep_in_register(part);
#pragma GCC unroll 3
    for (int t = 0; t < kTokens; ++t) sum[i][t][kTurn] += part * x_part[t];
  }
}

/// sums[t][first + i] of rows w[i], i < kRows, with kTokens tokens. `step` is called after every two vectors.
template <class Type, int kRows, int kTokens, class Step>
HXQ_ALWAYS_INLINE void sum_rows(const std::byte* const* w, const float* x, int64_t x_stride, int64_t cols,
                                int64_t first, RowSums<kTokens>& sums, Step step) {
  VecF sum[kRows][kTokens][2] = {};
  int64_t col = 0;
  for (; col + 2 * kLanes <= cols; col += 2 * kLanes) {
    add_vector<Type, kRows, kTokens, 0>(sum, w, x, x_stride, col, kLanes);
    add_vector<Type, kRows, kTokens, 1>(sum, w, x, x_stride, col + kLanes, kLanes);
    step();
  }
  if (col + kLanes <= cols) {
    add_vector<Type, kRows, kTokens, 0>(sum, w, x, x_stride, col, kLanes);
    if (col + kLanes < cols) {
      add_vector<Type, kRows, kTokens, 1>(sum, w, x, x_stride, col + kLanes, cols - col - kLanes);
    }
  } else if (col < cols) {
    add_vector<Type, kRows, kTokens, 0>(sum, w, x, x_stride, col, cols - col);
  }
#pragma GCC unroll 3
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) sums[t][first + i] = sum[i][t][0] + sum[i][t][1];
  }
}

/// A kernel of joint_gemv for rows of numbers in memory.
template <class Type>
struct RowsInMemory {
  const float* x;  // of the first token
  int64_t x_stride;
  int64_t cols;
  const std::byte* row[kGemvRows] = {};

  /// Rows `stride` bytes apart; the last one again where there are fewer than kGemvRows.
  void set_rows(const std::byte* first, int64_t stride, int64_t rows) {
    for (int64_t i = 0; i < kGemvRows; ++i) row[i] = first + (i < rows ? i : rows - 1) * stride;
  }

  template <int kTokens, class Step>
  HXQ_ALWAYS_INLINE void sum_with(int64_t t, RowSums<kTokens>& sums, Step step) const {
    constexpr int kRows = kTokens == 1 ? kGemvRows : HXQ_GEMV_ROWS;  // as registers allow
    for (int64_t i = 0; i < kGemvRows; i += kRows) {
      sum_rows<Type, kRows, kTokens>(row + i, x + t * x_stride, x_stride, cols, i, sums, step);
    }
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) const {
    sum_with<kTokens>(t, sums, [] {});
  }

  static Vec4 finish(int64_t, Vec4 sums) { return sums; }
};

template <class Type>
struct DenseRows : RowsInMemory<Type> {
  const DenseMatrix& weight;

  void open(int64_t first, int64_t rows) {
    const int64_t stride = weight.cols * Type::kBytes;
    this->set_rows(weight.data + first * stride, stride, rows);
  }
};

template <class Type>
void dense_gemv_of(const DenseMatrix& weight, const LinearArgs& args, int64_t begin, int64_t end) {
  joint_gemv(DenseRows<Type>{{args.x, args.x_stride, weight.cols}, weight}, args, begin, end);
}

void dense_gemv(const DenseMatrix& weight, const LinearArgs& args, int64_t begin, int64_t end) {
  switch (weight.dtype) {
    case DType::f16:
      return dense_gemv_of<F16>(weight, args, begin, end);
    case DType::bf16:
      return dense_gemv_of<Bf16>(weight, args, begin, end);
    default:
      return dense_gemv_of<F32>(weight, args, begin, end);
  }
}

template <class Type>
void widen_row(const std::byte* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, Type::load_vec(from + i * Type::kBytes));
  if (i < n) store_first(to + i, load_some<Type>(from + i * Type::kBytes, n - i), n - i);
}

void decode_dense(const DenseMatrix& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                  int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = (row + i) * weight.cols + col;
    switch (weight.dtype) {
      case DType::f16:
        widen_row<F16>(weight.data + at * 2, cols, out + i * stride);
        break;
      case DType::bf16:
        widen_row<Bf16>(weight.data + at * 2, cols, out + i * stride);
        break;
      default:
        widen_row<F32>(weight.data + at * 4, cols, out + i * stride);
        break;
    }
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
