// Prefill rows times a grouped matrix on AVX2: integer_gemm-inl.h with weights of GroupedView.

#pragma once

#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/integer_gemm-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Levels of a row's columns [col, col + cols) as whole numbers, zeros up to a multiple of kBlock.
template <int kBits>
void find_levels(const GroupedView& weight, int64_t row, int64_t col, int64_t cols, int16_t* level) {
  const uint8_t* from = weight.packed + row * weight.row_bytes + col / 8 * kBits;
  const uint8_t* end = weight.packed + weight.rows * weight.row_bytes;
  for (int64_t c = 0; c < cols; c += kGroupedStep, from += kBits) {
    const uint64_t bits = load_bits(from, end - from);
#pragma GCC unroll 8
    for (int i = 0; i < kGroupedStep; ++i) level[c + i] = weight.level_words[bits >> (kBits * i) & ((1 << kBits) - 1)];
  }
  for (int64_t c = cols; c < blocks_of(cols) * kBlock; ++c) level[c] = 0;
}

/// Levels times the scales of their groups, as whole numbers (GroupedView).
inline void scale_levels(const GroupedView& weight, int64_t row, int64_t col, int64_t cols, int16_t* level) {
  const uint8_t* code = weight.scales + row * weight.groups;
  for (int64_t c = 0; c < cols;) {
    const int64_t end = (col + c) / weight.group * weight.group + weight.group - col;
    const uint32_t scale = weight.row[row].scale_words[code[(col + c) / weight.group]];
    const __m256i whole = _mm256_set1_epi32(static_cast<int32_t>(scale));
    for (; c < end && c < cols; c += kGroupColumns) {
      auto* at = reinterpret_cast<__m256i*>(level + c);
      _mm256_storeu_si256(at, _mm256_mulhrs_epi16(_mm256_loadu_si256(at), whole));
    }
  }
}

template <int kBits>
void grouped_gemm_of(const GroupedView& weight, const LinearArgs& args, const float* packed, int64_t begin, int64_t end,
                     float* memory) {
  integer_gemm(weight, args, packed, begin, end, memory,
               [&](int64_t row, int64_t rows, int64_t col, int64_t cols, const LevelTiles& tiles) {
                 for (int64_t i = 0; i < rows; ++i) {
                   int16_t* level = tiles.level + i * kLevelStride;
                   find_levels<kBits>(weight, row + i, col, cols, level);
                   scale_levels(weight, row + i, col, cols, level);
                   tiles.unit[i] = weight.row[row + i].unit;
                 }
                 list_no_outliers(rows, tiles);
               });
}

void grouped_gemm(const GroupedView& weight, const LinearArgs& args, const float* packed, int64_t begin, int64_t end,
                  float* memory) {
  constexpr decltype(&grouped_gemm_of<3>) kByBits[] = {grouped_gemm_of<3>, grouped_gemm_of<4>, grouped_gemm_of<5>,
                                                       grouped_gemm_of<6>, grouped_gemm_of<7>, grouped_gemm_of<8>};
  kByBits[weight.bits - 3](weight, args, packed, begin, end, memory);
}

const IntegerGemm<GroupedView>* choose_grouped_gemm(const GroupedView& weight) {
  return has_integer_groups(weight) ? &kIntegerGemm<GroupedView, grouped_gemm> : nullptr;
}

}  // namespace
}  // namespace hxq::kernels::cpu
