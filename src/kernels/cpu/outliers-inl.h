// Where the outliers of rows are.

#pragma once

#include "kernels/cpu/ops.h"

namespace hxq::kernels::cpu {
namespace {

/// The first outlier of rows from `row` on, weight.outliers if there is none.
inline int64_t first_outlier(const CodebookView& weight, int64_t row) {
  int64_t begin = 0, end = weight.outliers;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (weight.outlier_row[middle] < row) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

/// Whether there is an outlier `i`, in a row before `end`.
inline bool is_outlier_before(const CodebookView& weight, int64_t i, int64_t end) {
  return i < weight.outliers && weight.outlier_row[i] < end;
}

}  // namespace
}  // namespace hxq::kernels::cpu
