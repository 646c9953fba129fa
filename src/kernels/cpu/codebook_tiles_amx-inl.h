// Codebook matrices of integer levels on matrix tiles (tiles_amx-inl.h).

#pragma once

#include "kernels/cpu/gemv_rows-inl.h"
#include "kernels/cpu/integer_gemv_avx512-inl.h"
#include "kernels/cpu/lookup_avx512-inl.h"
#include "kernels/cpu/outliers-inl.h"
#include "kernels/cpu/tiles_amx-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// 64 indices, looked up by vpermb, which cores with tiles do twice as fast as vpermi2b.
struct QuarteredIndices {
  __m512i value;
  __mmask64 bit6, bit7, both;

  HXQ_ALWAYS_INLINE explicit QuarteredIndices(__m512i index)
      : value(index),
        bit6(_mm512_movepi8_mask(_mm512_slli_epi16(index, 1))),
        bit7(_mm512_movepi8_mask(index)),
        both(_kand_mask64(bit6, bit7)) {}

  HXQ_ALWAYS_INLINE __m512i look_up(const ByteTable& table) const {
    const __m512i part0 = _mm512_permutexvar_epi8(value, table.part0);
    const __m512i part1 = _mm512_mask_permutexvar_epi8(part0, bit6, value, table.part1);
    const __m512i part2 = _mm512_mask_permutexvar_epi8(part1, bit7, value, table.part2);
    return _mm512_mask_permutexvar_epi8(part2, both, value, table.part3);
  }
};

/// Rows of a codebook matrix of integer levels.
struct CodebookTiles {
  const CodebookView& weight;
  int64_t column_stride;

  struct Decoder {
    const CodebookView& weight;
    ByteTable low, high;
    const uint8_t *index, *later;
    int64_t cols, rows, later_apart;

    HXQ_ALWAYS_INLINE explicit Decoder(const CodebookTiles& of)
        : weight(of.weight), low(weight.planes), high(weight.planes + 256), cols(weight.cols) {}

    HXQ_ALWAYS_INLINE void begin(int64_t row, int64_t count, RowsAhead ahead) {
      index = weight.indices + row * cols;
      later = weight.indices + ahead.first * cols;
      rows = count;
      later_apart = ahead.apart * cols;
    }

    HXQ_ALWAYS_INLINE void decode(int64_t block, int part, uint8_t* to) const {
      constexpr int64_t kRows = kTile / kParts;
      const int64_t col = block * kBlock, first = part * kRows;
      const uint8_t* from = index + first * cols + col;
      // In the order of memory: the processor then reads further ahead by itself.
      const uint8_t* ahead = later + part * later_apart + kRows * col;
      to += first * kBlock;
      if (rows == kTile && cols - col >= kBlock) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < kRows; ++i) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead + i * kBlock), _MM_HINT_T1);
          put(_mm512_loadu_si512(from + i * cols), to + i * kBlock);
        }
      } else {
        for (int64_t i = 0; i < kRows && first + i < rows; ++i) {
          put(load_indices(from + i * cols, cols - col), to + i * kBlock);
        }
      }
    }

   private:
    HXQ_ALWAYS_INLINE void put(__m512i value, uint8_t* to) const {
      const QuarteredIndices found(value);
      _mm512_store_si512(to, found.look_up(high));
      _mm512_store_si512(to + kTileBytes, found.look_up(low));
    }
  };

  int64_t first_outlier_of(int64_t row) const { return first_outlier(weight, row); }

  /// Adds what outliers change, from outlier `o` on.
  int64_t finish(int64_t o, int64_t row, int64_t rows, const float* columns, VecF* y) const {
    for (; is_outlier_before(weight, o, row + rows); ++o) {
      const VecF x = load(columns + weight.outlier_col[o] * column_stride);
      VecF& to = y[weight.outlier_row[o] - row];
      to = _mm512_fmadd_ps(splat(weight.outlier_change[o]), x, to);
    }
    return o;
  }
};

/// Bytes ahead of its reading that each of four streams is asked for.
constexpr int64_t kRowPrefetch = 2048;

/// One decode row: the same products of bytes by vpdpbusd, at the rate memory is read. High bytes are looked up plus
/// 128, without a sign; sums begin with what takes that off.
struct ByteRowKernel {
  const CodebookView& weight;
  const float* panel;

  struct Tables {
    ByteTable low, high;

    HXQ_ALWAYS_INLINE explicit Tables(const CodebookView& weight) : low(weight.planes), high(weight.planes + 256) {
      const auto without_sign = [](__m512i& part) {
        part = _mm512_xor_si512(part, _mm512_set1_epi8(-128));
        asm volatile("" : "+v"(part));
      };
      without_sign(high.part0);
      without_sign(high.part1);
      without_sign(high.part2);
      without_sign(high.part3);
    }
  };

  /// What sums begin with: minus 128 times those of x2, x1, x0, and 0.
  struct Begin {
    __m512i of[kPowers] = {};

    Begin(const CodebookView& weight, const float* x) {
      for (int64_t block = blocks_of(weight.cols); block > 0; --block) {
        for (int64_t plane = 0; plane < kPlanesOfX; ++plane, x += kTile) {
          of[plane] = _mm512_dpbusd_epi32(of[plane], _mm512_set1_epi8(-128), _mm512_loadu_si512(x));
        }
      }
      for (__m512i& sum : of) sum = _mm512_sub_epi32(__m512i{}, sum);
    }
  };
  Begin begin{weight, panel + kTileHead};

  template <int kRows>
  HXQ_ALWAYS_INLINE static void add_block(__m512i (&sum)[kRows][kPowers], const Tables& table, const uint8_t* index,
                                          int64_t apart, __mmask64 keep, const float* x) {
    const __m512i x2 = _mm512_loadu_si512(x), x1 = _mm512_loadu_si512(x + kTile),
                  x0 = _mm512_loadu_si512(x + 2 * kTile);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = index + i * apart;
      _mm_prefetch(reinterpret_cast<const char*>(from) + kRowPrefetch, _MM_HINT_T0);
      const QuarteredIndices found(_mm512_maskz_loadu_epi8(keep, from));
      const __m512i high = found.look_up(table.high), low = found.look_up(table.low);
      sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], high, x2);
      sum[i][1] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[i][1], high, x1), low, x2);
      sum[i][2] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum[i][2], high, x0), low, x1);
      sum[i][3] = _mm512_dpbusd_epi32(sum[i][3], low, x0);
    }
  }

  /// [a, b, c, d] of four lanes added up, in each 128 bits.
  HXQ_ALWAYS_INLINE static __m512i add_quads(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  }

  /// The 128-bit parts of a, b, c and d added up, one after the other.
  HXQ_ALWAYS_INLINE static __m512i add_parts(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
  }

  /// Sums of kLanes rows, each as add_quads leaves its powers, as one vector of rows for each power.
  HXQ_ALWAYS_INLINE static void add_rows(const __m512i (&row)[HXQ_LANES], VecF (&total)[kPowers]) {
    __m512i of[4];  // of[i]: the powers of rows i, 4 + i, 8 + i, 12 + i
    for (int i = 0; i < 4; ++i) of[i] = add_parts(row[i], row[4 + i], row[8 + i], row[12 + i]);
    const __m512i low01 = _mm512_unpacklo_epi32(of[0], of[1]), low23 = _mm512_unpacklo_epi32(of[2], of[3]),
                  high01 = _mm512_unpackhi_epi32(of[0], of[1]), high23 = _mm512_unpackhi_epi32(of[2], of[3]);
    total[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi64(low01, low23));
    total[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi64(low01, low23));
    total[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi64(high01, high23));
    total[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi64(high01, high23));
  }

  /// y of rows [row, row + rows), rows <= kLanes, of kRows streams, `apart` rows from each other. outlier: the first of
  /// each stream, then the first of its later rows.
  template <int kRows>
  __attribute__((noinline)) void multiply(const LinearArgs& args, int64_t row, int64_t rows, int64_t apart,
                                          int64_t* outlier) const {
    const Tables table(weight);
    const __mmask64 rest = first_bytes((weight.cols - 1) % kBlock + 1);
    __m512i sums[kRows][HXQ_LANES];
    if (rows < kLanes) __builtin_memset(sums, 0, sizeof sums);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* index = weight.indices + (row + r) * weight.cols;
      const float* x = panel + kTileHead;
      __m512i sum[kRows][kPowers];
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
        for (int power = 0; power < kPowers; ++power) sum[i][power] = begin.of[power];
      }
      int64_t left = weight.cols;
      for (; left > kBlock; left -= kBlock, index += kBlock, x += kPlanesOfX * kTile) {
        add_block(sum, table, index, apart * weight.cols, ~__mmask64{0}, x);
      }
      add_block(sum, table, index, apart * weight.cols, rest, x);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) sums[i][r] = add_quads(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    }
    for (int i = 0; i < kRows; ++i) {
      VecF total[kPowers];
      add_rows(sums[i], total);
      float y[HXQ_LANES];
      store(y, join_powers(total, splat(panel[0])));
      int64_t& o = outlier[i];
      for (const int64_t first = row + i * apart; is_outlier_before(weight, o, first + rows); ++o) {
        float& to = y[weight.outlier_row[o] - first];
        to = __builtin_fmaf(weight.outlier_change[o], args.x[weight.outlier_col[o]], to);
      }
      // Plus the zero that put_block adds where there is no bias.
      put_rows(args, row + i * apart, rows, args.bias ? load(y) : load(y) + VecF{});
    }
  }
};

/// Rows [begin, end), as gemv_rows does it.
void multiply_byte_rows(const ByteRowKernel& kernel, const LinearArgs& args, int64_t begin, int64_t end) {
  constexpr int kRows = 4;
  const int64_t apart = (end - begin) / kRows, streamed = begin + kRows * apart;
  int64_t outlier[kRows];
  for (int i = 0; i < kRows; ++i) outlier[i] = first_outlier(kernel.weight, begin + i * apart);
  for (int64_t row = begin; row < begin + apart; row += kLanes) {
    const int64_t left = begin + apart - row;
    kernel.multiply<kRows>(args, row, left < kLanes ? left : kLanes, apart, outlier);
  }
  if (streamed < end) kernel.multiply<1>(args, streamed, end - streamed, 0, outlier + kRows - 1);
}

bool supports_tiles(const CodebookView& weight) {
  return weight.index_bits == 8 && weight.integer_levels && weight.cols <= kMostTileCols;
}

void tile_gemv(const CodebookView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  if (args.tokens == 1) return multiply_byte_rows({weight, work.packed_x}, args, begin, end);
  const int64_t stride = x_columns_width(args.tokens);
  TileProduct<CodebookTiles>{CodebookTiles{weight, stride},
                             args,
                             weight.cols,
                             work.packed_x,
                             tile_x_floats(weight),
                             {work.x_columns, stride, work.x_columns ? kTile : 0},
                             TileMemory(work.memory)}
      .multiply(begin, end);
}

constexpr Gemv<CodebookView> kTileGemv{.panel_tokens = kTile,
                                       .packed_x_floats = tile_x_floats<CodebookView>,
                                       .pack_x = pack_tile_x<CodebookView>,
                                       .memory_floats = tile_memory_floats<CodebookView>,
                                       .multiply = tile_gemv};

/// A panel of prefill rows: the same, then x in floats if there are outliers, [cols, kTile].
int64_t tile_gemm_floats(const CodebookView& weight) {
  return tile_x_floats(weight) + (weight.outliers > 0 ? weight.cols * kTile : 0);
}

void pack_tile_gemm(const CodebookView& weight, const LinearArgs& args, int64_t first, float* panel) {
  pack_tile_x(weight, args, first, {0, 1}, panel);
  if (weight.outliers == 0) return;
  pack_columns(args.x + first * args.x_stride, args.x_stride, panel_tokens_left(args, first), weight.cols, kTile,
               panel + tile_x_floats(weight));
}

void tile_gemm(const CodebookView& weight, const LinearArgs& args, const float* packed, int64_t begin, int64_t end,
               float* memory) {
  const int64_t floats = tile_gemm_floats(weight);
  TileProduct<CodebookTiles>{CodebookTiles{weight, kTile},
                             args,
                             weight.cols,
                             packed,
                             floats,
                             {packed + tile_x_floats(weight), kTile, floats},
                             TileMemory(memory)}
      .multiply(begin, end);
}

constexpr const auto& kCodebookTileGemm = kTileGemm<CodebookView, tile_gemm_floats, pack_tile_gemm, tile_gemm>;

}  // namespace
}  // namespace hxq::kernels::cpu
