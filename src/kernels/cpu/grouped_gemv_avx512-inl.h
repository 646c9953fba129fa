// Decode rows times a grouped matrix of 7 or 8 bits on AVX-512 VNNI: as in integer_gemv_avx512-inl.h, with weights of
// GroupedView. Fewer bits are multiplied in grouped_words_avx512-inl.h or, if levels fit bytes,
// grouped_bytes_avx512-inl.h.

#pragma once

#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/grouped_bytes_avx512-inl.h"
#include "kernels/cpu/grouped_levels_avx512-inl.h"
#include "kernels/cpu/grouped_words_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// One decode row.
template <class Table, int kGroups>
struct GroupedKernel {
  const GroupedView& weight;
  const float* packed_x;

  /// Adds a block of kRows rows. Each stream is prefetched. codes: of the block's groups.
  template <int kRows>
  HXQ_ALWAYS_INLINE static void add_block(__m512i (&sum)[kRows][2], const Table& table, StreamBytes packed,
                                          const uint32_t* const (&scale_words)[kRows], StreamBytes codes, int64_t cols,
                                          const QuantizedBlock& x) {
    const __m512i x0 = _mm512_load_si512(x.half[0]), x1 = _mm512_load_si512(x.half[1]);
    __m512i index[kRows];
    Levels64 level[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = packed[i];
      _mm_prefetch(reinterpret_cast<const char*>(from) + kStreamPrefetch, _MM_HINT_T0);
      index[i] = table.spread(load_packed<Table::kBits>(from, cols));
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) level[i] = table.look_up(index[i]);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
      level[i] = scaled(level[i], BlockGroups<kGroups>::look_up(scale_words[i], codes[i]));
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] = _mm512_dpwssd_epi32(sum[i][0], level[i].half[0], x0);
      sum[i][1] = _mm512_dpwssd_epi32(sum[i][1], level[i].half[1], x1);
    }
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    const Table table(weight);
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t* scale_words[kRows];
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) scale_words[i] = weight.row[row + r + i * apart].scale_words;
      const auto* x = reinterpret_cast<const QuantizedBlock*>(packed_x + blocks_at(weight.cols));
      const float* x_scale = packed_x + kScalesAt;
      VecF total[kRows] = {};
      __m512i sum[kRows][2] = {};
      for_blocks<Table::kBits, kBlock, kGroups, kRows>(
          weight, row + r, apart,
          [&](StreamBytes packed, StreamBytes codes, int64_t cols)
              __attribute__((always_inline)) { add_block(sum, table, packed, scale_words, codes, cols, *x++); },
          [&]() __attribute__((always_inline)) {
            const VecF by = splat(*x_scale++);
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) {
              total[i] += _mm512_cvtepi32_ps(_mm512_add_epi32(sum[i][0], sum[i][1])) * by;
              sum[i][0] = sum[i][1] = __m512i{};
            }
          });
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) totals[i][r] = total[i];
    }
  }

  VecF finish(int64_t row, int64_t rows, VecF sums) const {
    float unit[HXQ_LANES] = {};
    for (int64_t i = 0; i < rows; ++i) unit[i] = weight.row[row + i].unit;
    return with_exponent(packed_x, sums * load(unit));
  }
};

/// A kernel of joint_gemv.
template <class Table, int kGroups>
struct GroupedRows : LevelRows {
  const GroupedView& weight;
  Vec4 unit = {};

  void open(int64_t first, int64_t rows) {
    const Table table(weight);
    const BlockGroups<kGroups> by(weight);
    const int64_t width = cols, apart = stride(cols);
    Ahead next = ahead;
    next.start(weight.packed + (first + kGemvRows) * weight.row_bytes);
    for (int64_t i = 0; i < rows; ++i) {
      unit[i] = weight.row[first + i].unit;
      const uint32_t* scale_words = weight.row[first + i].scale_words;
      const uint8_t* row_codes = weight.scales + (first + i) * weight.groups;
      const uint8_t* from = weight.packed + (first + i) * weight.row_bytes;
      for (int64_t col = 0; col < width; col += kBlock) {
        uint8_t rest[kGroups];
        const VecF scale = by.look_up(scale_words, by.codes(row_codes, col, rest));
        const __m512i packed = load_packed<Table::kBits>(from + col / 8 * Table::kBits, width - col);
        const Levels64 level = scaled(table.look_up(table.spread(packed)), scale);
        _mm512_store_si512(levels + i * apart + col, level.half[0]);
        _mm512_store_si512(levels + i * apart + col + 32, level.half[1]);
        next.step(2);
      }
    }
    ahead = next;
  }

  Vec4 finish(int64_t t, Vec4 sums) const { return LevelRows::finish(t, sums * unit); }
};

int64_t grouped_gemv_floats(const GroupedView& weight, int64_t tokens) {
  return tokens == 1 ? 0 : LevelRows::floats(weight.cols);
}

template <class Table, int kGroups>
void grouped_gemv_of(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin,
                     int64_t end) {
  if (args.tokens == 1) {
    return gemv_rows<4>(GroupedKernel<Table, kGroups>{weight, work.packed_x}, args, begin, end);
  }
  auto* levels = reinterpret_cast<int16_t*>(work.memory);
  const LevelRows rows{weight.cols, work.packed_x, quantized_floats(weight), levels, Ahead(args.tokens, Table::kBits)};
  joint_gemv(GroupedRows<Table, kGroups>{rows, weight}, args, begin, end);
}

void grouped_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  with_grouped_form(weight, [&]<class Table, int kGroups>() {
    if constexpr (Table::kBits > 6) grouped_gemv_of<Table, kGroups>(weight, args, work, begin, end);
  });
}

constexpr Gemv<GroupedView> kGroupedGemv{.panel_tokens = 1,
                                         .packed_x_floats = quantized_floats<GroupedView>,
                                         .pack_x = pack_token<GroupedView, quantize_x<GroupedView>>,
                                         .memory_floats = grouped_gemv_floats,
                                         .multiply = grouped_gemv};

const Gemv<GroupedView>& choose_grouped_gemv(const GroupedView& weight) {
  if (!has_integer_groups(weight)) return kDecodedGemv;
  if (weight.bits > 6) return kGroupedGemv;
  return weight.level_bytes ? kByteGemv : kWordGemv;
}

}  // namespace
}  // namespace hxq::kernels::cpu
