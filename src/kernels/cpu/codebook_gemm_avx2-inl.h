// What prefill rows are multiplied with (integer_gemm-inl.h) of a codebook of integer levels, on AVX2.

#pragma once

#include "kernels/cpu/integer_gemm-inl.h"

namespace hxq::kernels::cpu {
namespace {

void decode_levels(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                   const LevelTiles& tiles) {
  int16_t words[256];
  for (int i = 0; i < 256; ++i) {
    words[i] = static_cast<int16_t>(weight.planes[i] | weight.planes[256 + i] << 8);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const uint8_t* index = weight.indices + (row + i) * weight.cols + col;
    int16_t* level = tiles.level + i * kLevelStride;
    tiles.unit[i] = 1;
    for (int64_t c = 0; c < cols; ++c) level[c] = words[index[c]];
    for (int64_t c = cols; c < blocks_of(cols) * kBlock; ++c) level[c] = 0;
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
