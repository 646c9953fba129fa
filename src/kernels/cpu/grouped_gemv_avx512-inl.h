// Decode rows times a grouped matrix on AVX-512 VNNI: as in integer_gemv_avx512-inl.h, with weights of GroupedView.

#pragma once

#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/grouped_bytes_avx512-inl.h"
#include "kernels/cpu/grouped_levels_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// One decode row.
template <int kBits, bool kWide>
struct GroupedKernel {
  const GroupedView& weight;
  const float* packed_x;
  uint32_t* scales;  // of 4 rows

  /// A block of a row of each of kRows streams, `apart` bytes from each other. Each stream is prefetched.
  template <int kRows>
  HXQ_ALWAYS_INLINE static void add_block(__m512i (&sum)[kRows][2], const GroupedTable<kBits>& table,
                                          const BlockScales<kWide>& by, const uint8_t* packed, int64_t apart,
                                          const uint32_t* scale, int64_t cols, const QuantizedBlock& x) {
    const __m512i x0 = _mm512_load_si512(x.half[0]), x1 = _mm512_load_si512(x.half[1]);
    __m512i index[kRows];
    Levels64 level[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = packed + i * apart;
      _mm_prefetch(reinterpret_cast<const char*>(from) + kStreamPrefetch, _MM_HINT_T0);
      index[i] = table.spread(load_packed<kBits>(from, cols));
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) level[i] = table.look_up(index[i]);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) level[i] = scaled(level[i], by.of_block(scale + i * kScalesAtOnce));
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      sum[i][0] = _mm512_dpwssd_epi32(sum[i][0], level[i].half[0], x0);
      sum[i][1] = _mm512_dpwssd_epi32(sum[i][1], level[i].half[1], x1);
    }
  }

  /// total[i] = the sums of one row of each of kRows streams. A function of its own: what is called between would take
  /// the tables' registers.
  template <int kRows>
  __attribute__((noinline)) void sum_row(int64_t row, int64_t apart, VecF (&total)[kRows]) const {
    const GroupedTable<kBits> table(weight);
    const BlockScales<kWide> by(weight);
    const auto* x = reinterpret_cast<const QuantizedBlock*>(packed_x + blocks_at(weight.cols));
    const float* x_scale = packed_x + kScalesAt;
    const uint8_t* packed = weight.packed + row * weight.row_bytes;
    const uint32_t* scale = scales;
    const int64_t bytes_apart = apart * weight.row_bytes;
    VecF found[kRows] = {};
    for (int64_t col = 0, cols = weight.cols; cols > 0; cols -= kDecodeQuantization.block, ++x_scale) {
      __m512i sum[kRows][2] = {};
      if (cols >= kDecodeQuantization.block) {
#pragma GCC unroll 4
        for (int64_t b = 0; b < kScaleBlocks; ++b, col += kBlock, packed += 8 * kBits, ++x) {
          add_block(sum, table, by, packed, bytes_apart, scale + by.place_of(col), kBlock, *x);
        }
      } else {
        for (int64_t left = cols; left > 0; left -= kBlock, col += kBlock, packed += 8 * kBits, ++x) {
          add_block(sum, table, by, packed, bytes_apart, scale + by.place_of(col), left, *x);
        }
      }
      const VecF by_scale = splat(*x_scale);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        found[i] += _mm512_cvtepi32_ps(_mm512_add_epi32(sum[i][0], sum[i][1])) * by_scale;
      }
    }
    for (int i = 0; i < kRows; ++i) total[i] = found[i];
  }

  template <int kRows>
  void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int i = 0; i < kRows; ++i) find_scales(weight, row + r + i * apart, scales + i * kScalesAtOnce);
      VecF total[kRows];
      sum_row(row + r, apart, total);
      for (int i = 0; i < kRows; ++i) totals[i][r] = total[i];
    }
  }

  VecF finish(int64_t row, int64_t rows, VecF sums) const {
    float unit[HXQ_LANES] = {};
    for (int64_t i = 0; i < rows; ++i) unit[i] = weight.row[row + i].unit;
    return _mm512_scalef_ps(sums * load(unit), splat(reinterpret_cast<const QuantizedHead*>(packed_x)->exponent));
  }
};

/// A kernel of joint_gemv.
template <int kBits, bool kWide>
struct GroupedRows : LevelRows {
  const GroupedView& weight;
  uint32_t* scales;
  Vec4 unit = {};

  void open(int64_t first, int64_t rows) {
    const GroupedTable<kBits> table(weight);
    const BlockScales<kWide> by(weight);
    const int64_t width = cols, apart = stride(cols);
    Ahead next = ahead;
    next.start(weight.packed + (first + kGemvRows) * weight.row_bytes);
    for (int64_t i = 0; i < rows; ++i) {
      unit[i] = weight.row[first + i].unit;
      find_scales(weight, first + i, scales);
      const uint8_t* from = weight.packed + (first + i) * weight.row_bytes;
      for (int64_t col = 0; col < width; col += kBlock) {
        const Levels64 level =
            scaled(table.look_up(table.spread(load_packed<kBits>(from + col / 8 * kBits, width - col))),
                   by.of_block(scales + by.place_of(col)));
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
  return scale_words(weight) + (tokens == 1 ? 0 : LevelRows::floats(weight.cols));
}

void grouped_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  auto* scales = reinterpret_cast<uint32_t*>(work.memory);
  with_grouped_form(weight, [&]<int kBits, bool kWide>() {
    if (args.tokens == 1) {
      return gemv_rows<4>(GroupedKernel<kBits, kWide>{weight, work.packed_x, scales}, args, begin, end);
    }
    auto* levels = reinterpret_cast<int16_t*>(scales + scale_words(weight));
    const LevelRows rows{weight.cols, work.packed_x, quantized_floats(weight), levels, Ahead(args.tokens, kBits)};
    joint_gemv(GroupedRows<kBits, kWide>{rows, weight, scales}, args, begin, end);
  });
}

constexpr Gemv<GroupedView> kGroupedGemv{.packed_x_floats = quantized_floats<GroupedView>,
                                         .pack_x = quantize_x<GroupedView>,
                                         .memory_floats = grouped_gemv_floats,
                                         .multiply = grouped_gemv};

const Gemv<GroupedView>& choose_grouped_gemv(const GroupedView& weight) {
  if (!has_integer_groups(weight)) return kDecodedGemv;
  return weight.level_bytes ? kByteGemv : kGroupedGemv;
}

}  // namespace
}  // namespace hxq::kernels::cpu
