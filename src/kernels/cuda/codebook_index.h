#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// Index number `i` of a flat array of indices of 8, 16 or 12 bits (docs/format.md).
HXQ_HOST_DEVICE inline uint32_t index_at(const uint8_t* indices, int index_bits, int64_t i) {
  if (index_bits == 8) return indices[i];
  if (index_bits == 16) return static_cast<uint32_t>(indices[2 * i] | indices[2 * i + 1] << 8);
  const uint8_t* pair = indices + i / 2 * 3;
  return i % 2 == 0 ? static_cast<uint32_t>(pair[0] | (pair[1] & 0x0f) << 8)
                    : static_cast<uint32_t>(pair[1] >> 4 | pair[2] << 4);
}

/// The codebook's weight at flat position `row * cols + col`, before outliers and low-rank term.
HXQ_HOST_DEVICE inline float codebook_level(const uint8_t* indices, int index_bits, const float* codebook, int d,
                                            int64_t position) {
  return codebook[index_at(indices, index_bits, position / d) * d + position % d];
}

/// Whether a weight is stored beside the codebook's.
HXQ_HOST_DEVICE inline bool is_outlier(const CodebookWeight& w, int64_t row, int64_t col) {
  if (!w.outlier_row_begin) return false;
  for (uint32_t i = w.outlier_row_begin[row]; i < w.outlier_row_begin[row + 1]; ++i) {
    if (w.outlier_col[i] == col) return true;
  }
  return false;
}

}  // namespace hxq::cuda
