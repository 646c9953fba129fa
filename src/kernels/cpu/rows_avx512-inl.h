// How the kernels for few tokens on AVX-512 go through the rows of a matrix.

#pragma once

#include "kernels/cpu/lookup_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Adds to sums[t][first + row - begin] what putting the outliers of rows [begin, end), at most 16, in place of the
/// codebook's weights changes. The indices are in the cache. One loop over the entries of all rows: loops over the few
/// entries of each row would mispredict most of the time.
template <int kTokens>
void correct_outliers(const CodebookView& weight, const LinearArgs& args, int64_t begin, int64_t end,
                      float (&sums)[kTokens][HXQ_LANES], int64_t first) {
  const __m512i row_ends =
      _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), first_lanes(end - begin), weight.outlier_row + begin + 1);
  for (uint32_t i = weight.outlier_row[begin]; i < weight.outlier_row[end]; ++i) {
    const int64_t row = _mm_popcnt_u32(_mm512_cmple_epu32_mask(row_ends, _mm512_set1_epi32(static_cast<int>(i))));
    const int64_t col = weight.outlier_col[i];
    const float value = weight.outlier_value[i];
    const float replaced = weight.codebook[weight.indices[(begin + row) * weight.cols + col]];
    for (int t = 0; t < kTokens; ++t) {
      const float x = args.x[t * args.x_stride + col];
      sums[t][first + row] += value * x - replaced * x;
    }
  }
}

/// Asks for the entries from those of `row` on: they are met too seldom for the processor to foresee them.
inline void prefetch_outliers(const CodebookView& weight, int64_t row) {
  const uint32_t first = weight.outlier_row[row];
  _mm_prefetch(reinterpret_cast<const char*>(weight.outlier_row + row + 2 * kLanes), _MM_HINT_T0);
  for (const uint32_t i : {first, first + 16}) {
    _mm_prefetch(reinterpret_cast<const char*>(weight.outlier_col + i), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(weight.outlier_value + i), _MM_HINT_T0);
  }
}

/// Asks for more of a stream of indices, `row` being the next, so that memory does not idle while outliers are put in.
inline void prefetch_rows(const CodebookView& weight, int64_t row) {
  const char* next = reinterpret_cast<const char*>(weight.indices + row * weight.cols) + kPrefetch;
  for (int line = 0; line < 16; ++line) _mm_prefetch(next + 64 * line, _MM_HINT_T0);
}

/// Rows of each stream between which outliers are put in: measured, few where rows are short.
inline int64_t rows_at_once(int64_t cols) { return cols < 1536 ? 2 : kLanes; }

/// Sums of up to 16 consecutive rows of each of kRows streams, before the lanes of a row are added.
template <int kRows, int kTokens>
using RowTotals = VecF[kTokens][kRows][HXQ_LANES];

/// The sums of the lanes of each of 16 vectors.
inline VecF sum_lanes_of_16(const VecF (&v)[HXQ_LANES]) {
  const __m128 a = sum_lanes_of_4(v[0], v[1], v[2], v[3]), b = sum_lanes_of_4(v[4], v[5], v[6], v[7]);
  const __m128 c = sum_lanes_of_4(v[8], v[9], v[10], v[11]), d = sum_lanes_of_4(v[12], v[13], v[14], v[15]);
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_set_m128(b, a)), _mm256_set_m128(d, c), 1);
}

/// Adds what `args` asks for to finished sums of rows [row, row + rows) and stores them.
inline void put_rows(const LinearArgs& args, int64_t t, int64_t row, int64_t rows, VecF value) {
  float* y = args.y + t * args.y_stride + row;
  if (args.bias) value += load_first(args.bias + row, rows);
  if (args.accumulate) value += load_first(y, rows);
  store_first(y, value, rows);
}

/// Rows [begin, end) for kTokens tokens, kRows streams `apart` rows from each other, [begin, end) being the first's.
/// `Kernel::sum` adds up at most 16 rows of each stream, `Kernel::finish` makes numbers of what it found.
template <class Kernel, int kRows, int kTokens>
void stream_rows(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin,
                 int64_t apart, int64_t end) {
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t rows = end - row < kLanes ? end - row : kLanes;
    for (int i = 0; weight.outlier_row && i < kRows; ++i) prefetch_outliers(weight, row + i * apart + rows);
    RowTotals<kRows, kTokens> totals;
    if (rows < kLanes) __builtin_memset(totals, 0, sizeof totals);
    float corrections[kRows][kTokens][HXQ_LANES] = {};
    const int64_t step = rows_at_once(weight.cols);
    for (int64_t r = 0; r < rows; r += step) {
      const int64_t n = rows - r < step ? rows - r : step;
      Kernel::template sum<kRows, kTokens>(weight, row + r, n, apart, arranged, totals, r);
      for (int i = 0; weight.outlier_row && i < kRows; ++i) {
        prefetch_rows(weight, row + r + i * apart + n);
        correct_outliers<kTokens>(weight, args, row + r + i * apart, row + r + i * apart + n, corrections[i], r);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int t = 0; t < kTokens; ++t) {
        const VecF sums = Kernel::finish(weight, arranged, t, sum_lanes_of_16(totals[t][i]));
        put_rows(args, t, row + i * apart, rows, sums + load(corrections[i][t]));
      }
    }
  }
}

/// kRows rows are taken at once, as far apart as possible: separate streams draw more bandwidth from one core than a
/// single one.
template <class Kernel, int kRows, int kTokens>
void multiply_rows(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin,
                   int64_t end) {
  const int64_t apart = (end - begin) / kRows;
  stream_rows<Kernel, kRows, kTokens>(weight, args, arranged, begin, apart, begin + apart);
  stream_rows<Kernel, 1, kTokens>(weight, args, arranged, begin + apart * kRows, 0, end);  // fewer than kRows rows
}

}  // namespace
}  // namespace hxq::kernels::cpu
