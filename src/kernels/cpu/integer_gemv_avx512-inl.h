// Decode rows times a codebook of integer levels on AVX-512 VNNI: levels are 16-bit integers, put together from the two
// byte planes; x is rounded to 13 bits (kDecodeQuantization). One vpdpwssd does 32 products, where the float kernel
// converts and multiplies 16 at a time. A lane's sum of 256 columns is exact in 32 bits: 16 * 32767 * 4095 < 2^31.

#pragma once

#include "kernels/cpu/gemv_rows-inl.h"
#include "kernels/cpu/quantize-inl.h"
#include "kernels/cpu/quantize_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kScaleBlocks = kDecodeQuantization.block / kBlock;  // that share a scale of x

/// 64 columns, in the order in which levels come out of the tables.
struct alignas(64) QuantizedBlock {
  int16_t half[2][32];
};

/// Packed x of one token: this, a scale for every kScaleBlocks blocks, the blocks.
struct alignas(64) QuantizedHead {
  float exponent;  ///< sums are multiplied by 2 to this: scales alone might be out of float's range
};

/// The sums of one token, with the exponent of its packed x.
HXQ_ALWAYS_INLINE VecF with_exponent(const float* packed_x, VecF sums) {
  return _mm512_scalef_ps(sums, splat(reinterpret_cast<const QuantizedHead*>(packed_x)->exponent));
}
HXQ_ALWAYS_INLINE Vec4 with_exponent(const float* packed_x, Vec4 sums) {
  return _mm_scalef_ps(sums, _mm_set1_ps(reinterpret_cast<const QuantizedHead*>(packed_x)->exponent));
}

inline int64_t scales_of(int64_t cols) { return (blocks_of(cols) + kScaleBlocks - 1) / kScaleBlocks; }

/// In floats, from the start of packed x.
constexpr int64_t kScalesAt = sizeof(QuantizedHead) / sizeof(float);
inline int64_t blocks_at(int64_t cols) { return kScalesAt + (scales_of(cols) + 15) / 16 * 16; }

template <class View>
int64_t quantized_floats(const View& weight) {
  return blocks_at(weight.cols) + blocks_of(weight.cols) * static_cast<int64_t>(sizeof(QuantizedBlock) / sizeof(float));
}

/// Bytes are interleaved within 128 bits: half 0 has the first eight of every sixteen columns, half 1 the others.
inline void store_block(__m512i first, __m512i second, QuantizedBlock* block) {
  const __m512i lower = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13),
                upper = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
  _mm512_store_si512(block->half[0], _mm512_permutex2var_epi64(first, lower, second));
  _mm512_store_si512(block->half[1], _mm512_permutex2var_epi64(first, upper, second));
}

/// Writes head and scales of packed x, and calls `put(col, first, second)` with 64 rounded columns, 32 each, for every
/// 64 up to a multiple of kStep; zeros past the last. `unit`: what products are in units of.
template <int64_t kStep, class Put>
void round_x(const float* x, int64_t cols, float unit, float* packed_x, Put put) {
  static_assert(kStep % kBlock == 0 && kDecodeQuantization.block % kStep == 0);
  VecF largest = {};
  for (int64_t col = 0; col < cols; col += kLanes) largest = larger_magnitude(largest, columns_of(x + col, cols - col));
  const float most = largest_lane(largest);
  const VecF exponent = most > 0 && most <= __FLT_MAX__ ? _mm512_getexp_ps(splat(most)) : VecF{};
  reinterpret_cast<QuantizedHead*>(packed_x)->exponent = exponent[0] + _mm512_getexp_ps(splat(unit))[0];

  float* scale = packed_x + kScalesAt;
  for (int64_t first = 0; first < cols; first += kDecodeQuantization.block, ++scale) {
    const int64_t left = cols - first;
    const auto x_at = [&](int64_t col) { return _mm512_scalef_ps(columns_of(x + first + col, left - col), -exponent); };
    largest = VecF{};
    for (int64_t col = 0; col < kDecodeQuantization.block; col += kLanes) {
      largest = larger_magnitude(largest, x_at(col));
    }
    const BlockScale by(kDecodeQuantization, largest_lane(largest));
    *scale = by.scale;
    for (int64_t col = 0; col < kDecodeQuantization.block && col < (left + kStep - 1) / kStep * kStep; col += kBlock) {
      put(first + col, round_columns(x_at(col) * by.inverse, x_at(col + 16) * by.inverse),
          round_columns(x_at(col + 32) * by.inverse, x_at(col + 48) * by.inverse));
    }
  }
}

template <class View>
void quantize_x(const View& weight, const float* x, float* packed_x) {
  auto* block = reinterpret_cast<QuantizedBlock*>(packed_x + blocks_at(weight.cols));
  round_x<kBlock>(x, weight.cols, weight.planes_scale, packed_x, [&](int64_t col, __m512i first, __m512i second) {
    store_block(first, second, block + col / kBlock);
  });
}

/// 64 levels in the order of QuantizedBlock.
struct Levels64 {
  __m512i half[2];
};

struct LevelTable {
  ByteTable low, high;

  HXQ_ALWAYS_INLINE explicit LevelTable(const CodebookView& weight) : low(weight.planes), high(weight.planes + 256) {}

  /// Past the last column x is 0, so what index 0 stands for does not matter.
  HXQ_ALWAYS_INLINE Levels64 look_up(__m512i value) const {
    const Indices index = indices_of(value);
    const __m512i low_bytes = low.look_up<false>(index, 0), high_bytes = high.look_up<false>(index, 0);
    return {{_mm512_unpacklo_epi8(low_bytes, high_bytes), _mm512_unpackhi_epi8(low_bytes, high_bytes)}};
  }
};

/// As kPrefetch, with four streams: what is asked for at a time must fit the core's buffers.
constexpr int64_t kStreamPrefetch = 512;

/// One decode row: a row of each of kRows streams, `apart` bytes from each other. Each stream is prefetched.
struct IntegerKernel {
  const CodebookView& weight;
  const float* packed_x;

  template <int kRows>
  HXQ_ALWAYS_INLINE static void add_block(__m512i (&sum)[kRows][2], const LevelTable& table, const uint8_t* index,
                                          int64_t apart, int64_t cols, const QuantizedBlock& x) {
    const __m512i x0 = _mm512_load_si512(x.half[0]), x1 = _mm512_load_si512(x.half[1]);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = index + i * apart;
      _mm_prefetch(reinterpret_cast<const char*>(from) + kStreamPrefetch, _MM_HINT_T0);
      const Levels64 level = table.look_up(load_indices(from, cols));
      sum[i][0] = _mm512_dpwssd_epi32(sum[i][0], level.half[0], x0);
      sum[i][1] = _mm512_dpwssd_epi32(sum[i][1], level.half[1], x1);
    }
  }

  /// total[i] += the products of up to kScaleBlocks blocks, of which `cols` columns are left.
  template <int kRows>
  HXQ_ALWAYS_INLINE static void add_blocks(VecF (&total)[kRows], const LevelTable& table, const uint8_t* index,
                                           int64_t apart, int64_t cols, const QuantizedBlock* x, float scale) {
    __m512i sum[kRows][2] = {};
    if (cols >= kDecodeQuantization.block) {
#pragma GCC unroll 4
      for (int64_t b = 0; b < kScaleBlocks; ++b) add_block(sum, table, index + b * kBlock, apart, kBlock, x[b]);
    } else {
      for (; cols > 0; cols -= kBlock, index += kBlock, ++x) add_block(sum, table, index, apart, cols, *x);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      total[i] += _mm512_cvtepi32_ps(_mm512_add_epi32(sum[i][0], sum[i][1])) * splat(scale);
    }
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    const LevelTable table(weight);
    const auto* x = reinterpret_cast<const QuantizedBlock*>(packed_x + blocks_at(weight.cols));
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* index = weight.indices + (row + r) * weight.cols;
      VecF total[kRows] = {};
      for (int64_t col = 0, s = 0; col < weight.cols; col += kDecodeQuantization.block, ++s) {
        add_blocks(total, table, index + col, apart * weight.cols, weight.cols - col, x + s * kScaleBlocks,
                   packed_x[kScalesAt + s]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) totals[i][r] = total[i];
    }
  }

  VecF finish(int64_t, int64_t, VecF sums) const { return with_exponent(packed_x, sums); }
};

/// What kernels of joint_gemv share whose levels are looked up once, into memory. Multiplying them straight from the
/// table takes longer in all: permutes and products compete for execution ports.
struct LevelRows {
  int64_t cols;
  const float* packed_x;
  int64_t x_floats;
  int16_t* levels;  // [kGemvRows, stride]
  Ahead ahead;

  static int64_t stride(int64_t cols) { return blocks_of(cols) * kBlock + 32; }  // no multiple of 4 KB

  static int64_t floats(int64_t cols) { return kGemvRows * stride(cols) / 2; }

  /// Adds the products of half a block.
  template <int kTokens>
  HXQ_ALWAYS_INLINE static void add_half(__m512i (&sum)[kTokens][kGemvRows], const int16_t* const (&row)[kGemvRows],
                                         const float* x, int64_t x_floats, int64_t half) {
    __m512i x_half[kTokens];
#pragma GCC unroll 3
    for (int t = 0; t < kTokens; ++t) x_half[t] = _mm512_load_si512(x + t * x_floats + half * 16);
#pragma GCC unroll 4
    for (int i = 0; i < kGemvRows; ++i) {
      const __m512i level = _mm512_load_si512(row[i] + half * 32);
#pragma GCC unroll 3
      for (int t = 0; t < kTokens; ++t) sum[t][i] = _mm512_dpwssd_epi32(sum[t][i], level, x_half[t]);
    }
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) {
    constexpr int64_t kHalves = 2 * kScaleBlocks;  // that share a scale
    const int64_t apart = stride(cols), floats = x_floats, halves = 2 * blocks_of(cols);
    const int16_t* const row[kGemvRows] = {levels, levels + apart, levels + 2 * apart, levels + 3 * apart};
    const float* scales = packed_x + t * floats + kScalesAt;
    const float* x = packed_x + t * floats + blocks_at(cols);
    Ahead next = ahead;
#pragma GCC unroll 3
    for (int i = 0; i < kTokens; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kGemvRows; ++r) sums[i][r] = VecF{};
    }
    for (int64_t first = 0; first < halves; first += kHalves, ++scales) {
      __m512i sum[kTokens][kGemvRows] = {};
      if (first + kHalves <= halves) {
#pragma GCC unroll 8
        for (int64_t h = 0; h < kHalves; ++h) {
          add_half<kTokens>(sum, row, x, floats, first + h);
          next.step();
        }
      } else {
        for (int64_t h = first; h < halves; ++h) add_half<kTokens>(sum, row, x, floats, h);
      }
#pragma GCC unroll 3
      for (int i = 0; i < kTokens; ++i) {
        const VecF scale = splat(scales[i * floats]);
#pragma GCC unroll 4
        for (int r = 0; r < kGemvRows; ++r) sums[i][r] += _mm512_cvtepi32_ps(sum[i][r]) * scale;
      }
    }
    ahead = next;
  }

  Vec4 finish(int64_t t, Vec4 sums) const { return with_exponent(packed_x + t * x_floats, sums); }
};

struct IntegerRows : LevelRows {
  const CodebookView& weight;

  void open(int64_t first, int64_t rows) {
    const LevelTable table(weight);
    const uint8_t* index = weight.indices + first * cols;
    const int64_t width = cols, apart = stride(cols);
    Ahead next = ahead;
    next.start(index + kGemvRows * width);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t col = 0; col < width; col += kBlock) {
        const Levels64 level = table.look_up(load_indices(index + i * width + col, width - col));
        _mm512_store_si512(levels + i * apart + col, level.half[0]);
        _mm512_store_si512(levels + i * apart + col + 32, level.half[1]);
        next.step(2);
      }
    }
    ahead = next;
  }
};

int64_t integer_gemv_floats(const CodebookView& weight, int64_t tokens) {
  return tokens == 1 ? 0 : OutlierSums::floats(tokens) + LevelRows::floats(weight.cols);
}

void integer_gemv(const CodebookView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin,
                  int64_t end) {
  if (args.tokens == 1) {
    gemv_rows<4>(IntegerKernel{weight, work.packed_x}, args, begin, end);
    return add_outliers(weight, args, begin, end);
  }
  auto* levels = reinterpret_cast<int16_t*>(work.memory + OutlierSums::floats(args.tokens));
  const LevelRows rows{weight.cols, work.packed_x, quantized_floats(weight), levels, Ahead(args.tokens)};
  joint_gemv(IntegerRows{rows, weight}, weight, args, work.x_columns, begin, end, work.memory);
}

constexpr Gemv<CodebookView> kIntegerGemv{.panel_tokens = 1,
                                          .packed_x_floats = quantized_floats<CodebookView>,
                                          .pack_x = pack_token<CodebookView, quantize_x<CodebookView>>,
                                          .memory_floats = integer_gemv_floats,
                                          .multiply = integer_gemv};

}  // namespace
}  // namespace hxq::kernels::cpu
