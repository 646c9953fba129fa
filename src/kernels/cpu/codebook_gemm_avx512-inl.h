// What prefill rows are multiplied with (integer_gemm-inl.h) of a codebook of integer levels, on AVX-512.

#pragma once

#include "kernels/cpu/integer_gemm-inl.h"
#include "kernels/cpu/lookup_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

void decode_levels(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                   const LevelTiles& tiles) {
  const ByteTable low(weight.planes), high(weight.planes + 256);
  // Bytes are interleaved within 128 bits; with the indices in this order levels come out in the order of columns.
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t i = 0; i < rows; ++i) {
    const uint8_t* index = weight.indices + (row + i) * weight.cols + col;
    int16_t* level = tiles.level + i * kLevelStride;
    tiles.unit[i] = 1;
    for (int64_t c = 0; c < cols; c += kBlock) {
      const __mmask64 keep = first_bytes(cols - c);
      const Indices found = indices_of(_mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(keep, index + c)));
      const __m512i low_bytes = low.look_up<false>(found, keep);
      const __m512i high_bytes = high.look_up<false>(found, keep);
      _mm512_storeu_si512(level + c, _mm512_unpacklo_epi8(low_bytes, high_bytes));
      _mm512_storeu_si512(level + c + 32, _mm512_unpackhi_epi8(low_bytes, high_bytes));
    }
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
