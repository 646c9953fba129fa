// How the kernels for few tokens on AVX-512 go through the rows of a matrix.

#pragma once

#include "kernels/cpu/lookup_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Puts the outliers of rows [begin, end), at most 16, in place of the codebook's weights in y. The indices are in the
/// cache. One loop over the entries of all rows: loops over the few entries of each row would mispredict most of the
/// time.
template <int kTokens>
void correct_outliers(const CodebookView& weight, const LinearArgs& args, int64_t begin, int64_t end) {
  const __m512i row_ends =
      _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), first_lanes(end - begin), weight.outlier_row + begin + 1);
  for (uint32_t i = weight.outlier_row[begin]; i < weight.outlier_row[end]; ++i) {
    const int64_t row =
        begin + _mm_popcnt_u32(_mm512_cmple_epu32_mask(row_ends, _mm512_set1_epi32(static_cast<int>(i))));
    const int64_t col = weight.outlier_col[i];
    const float value = weight.outlier_value[i];
    const float replaced = weight.codebook[weight.indices[row * weight.cols + col]];
    for (int t = 0; t < kTokens; ++t) {
      const float x = args.x[t * args.x_stride + col];
      float& y = args.y[t * args.y_stride + row];
      y = y + value * x - replaced * x;
    }
  }
}

/// Rows [begin, end) for kTokens tokens. kRows of them are taken at once, as far apart as possible: separate streams
/// draw more bandwidth from one core than a single one. `Kernel::sum<kRows, kTokens>` gives sums[t][i] of row `row + i
/// * apart`.
template <class Kernel, int kRows, int kTokens>
void stream_rows(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin,
                 int64_t apart, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float sums[kTokens][4];
    Kernel::template sum<kRows, kTokens>(weight, row, apart, arranged, sums);
    for (int i = 0; i < kRows; ++i) {
      for (int t = 0; t < kTokens; ++t) put(args, t, row + i * apart, sums[t][i]);
    }
  }
}

template <class Kernel, int kRows, int kTokens>
void multiply_rows(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin,
                   int64_t end) {
  const int64_t apart = (end - begin) / kRows;
  const auto correct = [&](int64_t row, int64_t row_end) {
    if (weight.outlier_row) correct_outliers<kTokens>(weight, args, row, row_end);
  };
  for (int64_t row = begin, row_end = 0; row < begin + apart; row = row_end) {
    row_end = row + kLanes < begin + apart ? row + kLanes : begin + apart;
    stream_rows<Kernel, kRows, kTokens>(weight, args, arranged, row, apart, row_end);
    for (int64_t i = 0; i < kRows; ++i) correct(row + i * apart, row_end + i * apart);
  }
  const int64_t rest = begin + apart * kRows;  // fewer than kRows rows
  stream_rows<Kernel, 1, kTokens>(weight, args, arranged, rest, 0, end);
  correct(rest, end);
}

}  // namespace
}  // namespace hxq::kernels::cpu
