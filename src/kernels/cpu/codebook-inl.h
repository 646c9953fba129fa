// Codebook matrices of every layout, the codebook in memory.

#pragma once

#include "kernels/cpu/dense-inl.h"

namespace hxq::kernels::cpu {
namespace {

inline uint32_t index_at(const CodebookView& weight, int64_t flat) {
  if (weight.index_bits == 8) return weight.indices[flat];
  if (weight.index_bits == 16) return weight.indices[2 * flat] | weight.indices[2 * flat + 1] << 8;
  const uint8_t* pair = weight.indices + flat / 2 * 3;  // two indices in three bytes
  return flat % 2 == 0 ? pair[0] | (pair[1] & 0x0f) << 8 : pair[1] >> 4 | pair[2] << 4;
}

/// Replaces the outliers of `row` in columns [col, col + cols) of a decoded row.
inline void assign_outliers(const CodebookView& weight, int64_t row, int64_t col, int64_t cols, float* out) {
  if (!weight.outlier_row) return;
  for (uint32_t i = weight.outlier_row[row]; i < weight.outlier_row[row + 1]; ++i) {
    const int64_t at = weight.outlier_col[i] - col;
    if (at >= 0 && at < cols) out[at] = weight.outlier_value[i];
  }
}

/// Codebook weights of W[row, col .. col + cols), without outliers.
inline void lookup_row(const CodebookView& weight, int64_t row, int64_t col, int64_t cols, float* out) {
  if (weight.index_bits == 8 && weight.d == 1) {
    const uint8_t* index = weight.indices + row * weight.cols + col;
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) store(out + j, look_up_lanes(weight.codebook, index + j));
    for (; j < cols; ++j) out[j] = weight.codebook[index[j]];
    return;
  }
  const int64_t flat = row * weight.cols + col;  // weights before this one; cols is a multiple of d
  int64_t code = flat / weight.d;
  int64_t part = flat % weight.d;
  for (int64_t j = 0; j < cols; ++code, part = 0) {
    const float* word = weight.codebook + static_cast<int64_t>(index_at(weight, code)) * weight.d;
    for (; part < weight.d && j < cols; ++part, ++j) out[j] = word[part];
  }
}

/// Any matrix.
void decode_codebook_by_lookup(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                               float* out, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    lookup_row(weight, row + i, col, cols, out + i * stride);
    assign_outliers(weight, row + i, col, cols, out + i * stride);
  }
}

/// Any layout: a piece of a row is looked up, then multiplied with every token.
void codebook_gemv_by_pieces(const CodebookView& weight, const LinearArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kPiece = 256;
  alignas(64) float piece[kPiece];
  for (int64_t row = begin; row < end; ++row) {
    VecF sum[Ops::kGemvTokens] = {};
    for (int64_t col = 0; col < weight.cols; col += kPiece) {
      const int64_t n = weight.cols - col < kPiece ? weight.cols - col : kPiece;
      lookup_row(weight, row, col, n, piece);
      for (int64_t t = 0; t < args.tokens; ++t) {
        const float* x = args.x + t * args.x_stride + col;
        int64_t j = 0;
        for (; j + kLanes <= n; j += kLanes) sum[t] += load(piece + j) * load(x + j);
        if (j < n) sum[t] += load_first(piece + j, n - j) * load_first(x + j, n - j);
      }
    }
    for (int64_t t = 0; t < args.tokens; ++t) put(args, t, row, sum_lanes(sum[t]));
  }
}

/// Bytes ahead of its reading that a stream of indices is asked for; hardware prefetch alone reached half the rate.
constexpr int64_t kPrefetch = 2048;

/// Byte indices, for kTokens tokens from `first` on: vectors of weights are looked up in memory. Two sums each, in
/// turn.
template <int kTokens>
void codebook_gemv_by_lanes(const CodebookView& weight, const LinearArgs& args, int64_t first, int64_t begin,
                            int64_t end) {
  const float* x = args.x + first * args.x_stride;
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* index = weight.indices + row * weight.cols;
    VecF sum[kTokens][2] = {};
    int64_t col = 0;
    for (; col + 2 * kLanes <= weight.cols; col += 2 * kLanes) {
      __builtin_prefetch(index + col + kPrefetch);
      const VecF w0 = look_up_lanes(weight.codebook, index + col);
      const VecF w1 = look_up_lanes(weight.codebook, index + col + kLanes);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        sum[t][0] += w0 * load(x + t * args.x_stride + col);
        sum[t][1] += w1 * load(x + t * args.x_stride + col + kLanes);
      }
    }
    float rest[kTokens] = {};
    for (; col < weight.cols; ++col) {
      for (int t = 0; t < kTokens; ++t) rest[t] += weight.codebook[index[col]] * x[t * args.x_stride + col];
    }
    for (int t = 0; t < kTokens; ++t) {
      put(args, first + t, row, sum_lanes(sum[t][0] + sum[t][1]) + rest[t]);
    }
  }
}

/// Any matrix, up to kGemvTokens tokens.
void codebook_gemv_by_lookup(const CodebookView& weight, const LinearArgs& args, const float*, int64_t begin,
                             int64_t end) {
  if (weight.index_bits != 8 || weight.d != 1) return codebook_gemv_by_pieces(weight, args, begin, end);
  int64_t t = 0;
  for (; t + 4 <= args.tokens; t += 4) codebook_gemv_by_lanes<4>(weight, args, t, begin, end);
  for (; t < args.tokens; ++t) codebook_gemv_by_lanes<1>(weight, args, t, begin, end);
}

int64_t x_as_is(const CodebookView&, int64_t) { return 0; }

}  // namespace
}  // namespace hxq::kernels::cpu
