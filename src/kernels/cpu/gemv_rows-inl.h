// How kernels for a single decode row go through the rows of a matrix, at the rate memory is read.

#pragma once

#include "kernels/cpu/gemv-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Sums of up to kLanes consecutive rows of each of kRows streams, before the lanes of a row are added.
template <int kRows>
using RowTotals = VecF[kRows][HXQ_LANES];

/// Adds what `args` asks for to finished sums of rows [row, row + rows) and stores them.
inline void put_rows(const LinearArgs& args, int64_t row, int64_t rows, VecF value) {
  float* y = args.y + row;
  if (args.bias) value += load_first(args.bias + row, rows);
  if (args.accumulate) value += load_first(y, rows);
  store_first(y, value, rows);
}

/// kRows streams of rows, `apart` rows from each other; [begin, end) is the first's. `Kernel`:
///     sum<kRows>(row, rows, apart, totals)  adds up rows [row, row + rows), at most kLanes, of each stream
///     finish(row, rows, sums)               makes numbers of the sums of these rows
template <int kRows, class Kernel>
void stream_rows(const Kernel& kernel, const LinearArgs& args, int64_t begin, int64_t apart, int64_t end) {
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t rows = end - row < kLanes ? end - row : kLanes;
    RowTotals<kRows> totals;
    if (rows < kLanes) __builtin_memset(totals, 0, sizeof totals);
    kernel.template sum<kRows>(row, rows, apart, totals);
    for (int i = 0; i < kRows; ++i) {
      const int64_t first = row + i * apart;
      put_rows(args, first, rows, kernel.finish(first, rows, sum_lanes_of_all(totals[i])));
    }
  }
}

/// Rows [begin, end), kRows at once and as far apart as possible: separate streams draw more bandwidth from one core
/// than a single one.
template <int kRows, class Kernel>
void gemv_rows(const Kernel& kernel, const LinearArgs& args, int64_t begin, int64_t end) {
  const int64_t apart = (end - begin) / kRows;
  stream_rows<kRows>(kernel, args, begin, apart, begin + apart);
  stream_rows<1>(kernel, args, begin + apart * kRows, 0, end);  // fewer than kRows rows
}

}  // namespace
}  // namespace hxq::kernels::cpu
