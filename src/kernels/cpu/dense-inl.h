// Matrices in the source's own type, and what the codebook kernels share with them.

#pragma once

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Adds what `args` asks for to a finished sum and stores it.
inline void put(const LinearArgs& args, int64_t t, int64_t row, float value) {
  float* y = args.y + t * args.y_stride + row;
  if (args.bias) value += args.bias[row];
  *y = args.accumulate ? *y + value : value;
}

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

/// Rows of a dense matrix for kTokens tokens; two sums for each, in turn.
template <class Type, int kTokens>
void dense_gemv_of(const DenseMatrix& weight, const LinearArgs& args, int64_t first, int64_t begin, int64_t end) {
  const float* x[kTokens];
  for (int t = 0; t < kTokens; ++t) x[t] = args.x + (first + t) * args.x_stride;
  for (int64_t row = begin; row < end; ++row) {
    const std::byte* w = weight.data + row * weight.cols * Type::kBytes;
    VecF sum[kTokens][2] = {};
    int64_t col = 0;
    for (; col + 2 * kLanes <= weight.cols; col += 2 * kLanes) {
      const VecF w0 = Type::load_vec(w + col * Type::kBytes);
      const VecF w1 = Type::load_vec(w + (col + kLanes) * Type::kBytes);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        sum[t][0] += w0 * load(x[t] + col);
        sum[t][1] += w1 * load(x[t] + col + kLanes);
      }
    }
    if (col + kLanes <= weight.cols) {
      const VecF w0 = Type::load_vec(w + col * Type::kBytes);
      for (int t = 0; t < kTokens; ++t) sum[t][0] += w0 * load(x[t] + col);
      col += kLanes;
    }
    if (const int64_t rest = weight.cols - col; rest > 0) {
      const VecF w1 = load_some<Type>(w + col * Type::kBytes, rest);
      for (int t = 0; t < kTokens; ++t) sum[t][1] += w1 * load_first(x[t] + col, rest);
    }
    for (int t = 0; t < kTokens; ++t) put(args, first + t, row, sum_lanes(sum[t][0] + sum[t][1]));
  }
}

template <class Type>
void dense_gemv_of(const DenseMatrix& weight, const LinearArgs& args, int64_t begin, int64_t end) {
  int64_t t = 0;
  for (; t + 4 <= args.tokens; t += 4) dense_gemv_of<Type, 4>(weight, args, t, begin, end);
  for (; t < args.tokens; ++t) dense_gemv_of<Type, 1>(weight, args, t, begin, end);
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
