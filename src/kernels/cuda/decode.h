#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// out[i, :] = row first_row + i of the matrix, outliers, low-rank term and channel scales applied.
struct DecodeArgs {
  int64_t first_row = 0;
  int64_t rows = 0;
  Output out;  // [rows, cols]
};
Status decode_rows(const CodebookWeight& weight, const DecodeArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
