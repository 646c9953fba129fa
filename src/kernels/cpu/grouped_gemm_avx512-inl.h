// Prefill rows times a grouped matrix on AVX-512 VNNI: integer_gemm-inl.h with weights of GroupedView.

#pragma once

#include "kernels/cpu/grouped_levels_avx512-inl.h"
#include "kernels/cpu/integer_gemm-inl.h"

namespace hxq::kernels::cpu {
namespace {

template <class Table, int kGroups>
void decode_grouped_levels(const GroupedView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                           const LevelTiles& tiles) {
  const Table table(weight);
  const BlockGroups<kGroups> by(weight);
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);  // puts them in the order of columns
  for (int64_t i = 0; i < rows; ++i) {
    const uint32_t* scale_words = weight.row[row + i].scale_words;
    const uint8_t* row_codes = weight.scales + (row + i) * weight.groups;
    const uint8_t* from = weight.packed + (row + i) * weight.row_bytes;
    int16_t* level = tiles.level + i * kLevelStride;
    for (int64_t c = col; c < col + cols; c += kBlock, level += kBlock) {
      const __m512i packed = load_packed<Table::kBits>(from + c / 8 * Table::kBits, col + cols - c);
      uint8_t rest[kGroups];
      const VecF scale = by.look_up(scale_words, by.codes(row_codes, c, rest));
      const Levels64 found = scaled(table.look_up(table.spread(packed)), scale);
      _mm512_storeu_si512(level, _mm512_permutex2var_epi64(found.half[0], first, found.half[1]));
      _mm512_storeu_si512(level + 32, _mm512_permutex2var_epi64(found.half[0], second, found.half[1]));
    }
    tiles.unit[i] = weight.row[row + i].unit;
  }
  list_no_outliers(rows, tiles);
}

void grouped_gemm(const GroupedView& weight, const LinearArgs& args, const float* packed, int64_t begin, int64_t end,
                  float* memory) {
  with_grouped_form(weight, [&]<class Table, int kGroups>() {
    integer_gemm(weight, args, packed, begin, end, memory,
                 [&](int64_t row, int64_t rows, int64_t col, int64_t cols, const LevelTiles& tiles) {
                   decode_grouped_levels<Table, kGroups>(weight, row, rows, col, cols, tiles);
                 });
  });
}

const IntegerGemm<GroupedView>* choose_grouped_gemm(const GroupedView& weight) {
  return has_integer_groups(weight) ? &kIntegerGemm<GroupedView, grouped_gemm> : nullptr;
}

}  // namespace
}  // namespace hxq::kernels::cpu
