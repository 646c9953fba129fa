// Prefill rows times levels of 16 bits. One vpdpwssd (on AVX2 a vpmaddwd and an addition) does twice the products of a
// float multiply-add. x is rounded to 11 bits (kPrefillQuantization), so that the sum of 64 products fits 32 bits:
// 64 * 32767 * 1023 < 2^31. Sums of 64 are exact; they are added up in float. |x| below 2^-100 counts as 0.
//
// As in gemm-inl.h lanes are tokens and a weight is broadcast, here a pair of weights. Before this a target includes
// its quantize_<target>-inl.h.

#pragma once

#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/outliers-inl.h"
#include "kernels/cpu/quantize-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kPairs = kBlock / 2;
constexpr int64_t kPairVectors = kPairs / kLanes;

/// A vector of pairs of 16-bit numbers.
using Pairs = decltype(round_columns(VecF{}, VecF{}));

/// Rows of levels decoded at once, and columns: they stay in the second-level cache.
constexpr int64_t kLevelRows = 4 * kTileRows;
constexpr int64_t kLevelCols = 256 * kLanes;
constexpr int64_t kLevelStride = kLevelCols + 32;  // no multiple of 4 KB, or rows would share cache sets

/// x of 64 columns in a panel of tokens: [kPairs, width] pairs of 16-bit numbers, then [width] scales of x, then
/// [width] scales of products.
inline int64_t block_floats(int64_t width) { return (kPairs + 2) * width; }

template <class View>
int64_t integer_panel_floats(const View& weight) {
  return blocks_of(weight.cols) * block_floats(kPanelTokens);
}

/// 64 columns of one token as pairs, and the scale that restores x.
struct RoundedX {
  Pairs pairs[kPairVectors];
  float scale;
};

RoundedX round_block(const float* x, int64_t cols) {
  VecF part[2 * kPairVectors];
  VecF largest = {};
  for (int64_t i = 0; i < 2 * kPairVectors; ++i) {
    part[i] = columns_of(x + i * kLanes, cols - i * kLanes);
    largest = larger_magnitude(largest, part[i]);
  }
  const BlockScale by(kPrefillQuantization, largest_lane(largest));
  RoundedX rounded;
  rounded.scale = by.scale;
  for (int64_t i = 0; i < kPairVectors; ++i) {
    rounded.pairs[i] = round_columns(part[2 * i] * by.inverse, part[2 * i + 1] * by.inverse);
  }
  return rounded;
}

template <class View>
void pack_integer_panel(const View& weight, const LinearArgs& args, int64_t first_token, float* panel) {
  const float* x = args.x + first_token * args.x_stride;
  const int64_t tokens = args.tokens - first_token < kPanelTokens ? args.tokens - first_token : kPanelTokens;
  const int64_t width = panel_width(tokens);
  for (int64_t col = 0; col < weight.cols; col += kBlock, panel += block_floats(width)) {
    for (int64_t first = 0; first < width; first += kLanes) {
      VecF pairs[kPairVectors][HXQ_LANES] = {};
      float scale[HXQ_LANES] = {};
      for (int64_t t = 0; t < kLanes && first + t < tokens; ++t) {
        const RoundedX rounded = round_block(x + (first + t) * args.x_stride + col, weight.cols - col);
        for (int64_t i = 0; i < kPairVectors; ++i) pairs[i][t] = reinterpret_cast<VecF>(rounded.pairs[i]);
        scale[t] = rounded.scale;
      }
      for (int64_t part = 0; part < kPairVectors; ++part) {
        transpose(pairs[part]);
        for (int64_t i = 0; i < kLanes; ++i) store(panel + (part * kLanes + i) * width + first, pairs[part][i]);
      }
      store(panel + kPairs * width + first, load(scale));
      store(panel + (kPairs + 1) * width + first, load(scale) * weight.planes_scale);
    }
  }
}

/// An outlier of a decoded row: column within the tile, and what is to be added to the codebook's weight.
struct TileOutlier {
  int32_t col;
  float delta;
};

/// Rows of levels with their outliers: those of row i are outlier[begin[i]] to outlier[begin[i + 1]].
struct LevelTiles {
  int16_t* level;   // [kLevelRows, kLevelStride]
  float* unit;      // [kLevelRows], what sums of a row are multiplied by before outliers are added
  uint32_t* begin;  // [kLevelRows + 1]
  TileOutlier* outlier;

  LevelTiles(float* memory)
      : level(reinterpret_cast<int16_t*>(memory)),
        unit(reinterpret_cast<float*>(level + kLevelRows * kLevelStride)),
        begin(reinterpret_cast<uint32_t*>(unit + kLevelRows)),
        outlier(reinterpret_cast<TileOutlier*>(begin + kLevelRows + 16)) {}

  static constexpr int64_t floats(int64_t outliers) {
    return kLevelRows * kLevelStride / 2 + kLevelRows + kLevelRows + 16 + 2 * outliers;
  }
};

int64_t integer_memory_floats(const GroupedView&, int64_t) { return LevelTiles::floats(0); }

int64_t integer_memory_floats(const CodebookView& weight, int64_t) {
  static_assert(kLevelRows <= kOutlierRows);
  return LevelTiles::floats(weight.most_outliers);
}

/// Rows up to a multiple of kTileRows are filled with zeros.
void fill_tile(const LevelTiles& tiles, int64_t rows, int64_t cols) {
  for (int64_t i = rows; i % kTileRows != 0; ++i) {
    const int64_t bytes = blocks_of(cols) * kBlock * static_cast<int64_t>(sizeof(int16_t));
    __builtin_memset(tiles.level + i * kLevelStride, 0, static_cast<size_t>(bytes));
    tiles.unit[i] = 0;
  }
}

void list_outliers(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                   const LevelTiles& tiles) {
  uint32_t count = 0;
  int64_t o = first_outlier(weight, row);
  for (int64_t i = 0; i < rows; ++i) {
    tiles.begin[i] = count;
    for (; is_outlier_before(weight, o, row + i + 1); ++o) {
      const int64_t at = static_cast<int64_t>(weight.outlier_col[o]) - col;
      if (at < 0 || at >= cols) continue;
      const float level = weight.codebook[weight.indices[(row + i) * weight.cols + col + at]];
      tiles.outlier[count++] = {static_cast<int32_t>(at), weight.outlier_value[o] - level};
    }
  }
  tiles.begin[rows] = count;
}

void list_no_outliers(int64_t rows, const LevelTiles& tiles) {
  for (int64_t i = 0; i <= rows; ++i) tiles.begin[i] = 0;
}

inline VecF whole_to_float(Pairs sums) { return __builtin_convertvector(reinterpret_cast<VecI>(sums), VecF); }

/// sums[v][first + i] of kRows rows of levels and kVectors vectors of tokens.
template <int kRows, int kVectors>
__attribute__((noinline)) void multiply_levels(const int16_t* level, const float* panel, int64_t blocks,
                                               VecF (*sums)[HXQ_LANES], int64_t first) {
  constexpr int64_t kWidth = kVectors * kLanes;
  VecF total[kRows][kVectors] = {};
  for (int64_t b = 0; b < blocks; ++b, level += kBlock, panel += (kPairs + 2) * kWidth) {
    Pairs sum[kRows][kVectors] = {};
#pragma GCC unroll 4
    for (int64_t p = 0; p < kPairs; ++p) {
      Pairs x[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) x[v] = reinterpret_cast<Pairs>(load(panel + p * kWidth + v * kLanes));
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        int32_t pair;
        __builtin_memcpy(&pair, level + i * kLevelStride + 2 * p, sizeof pair);
        const Pairs w = reinterpret_cast<Pairs>(splat_int(pair));
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[i][v] = add_pair_products(sum[i][v], w, x[v]);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const VecF scale = load(panel + (kPairs + 1) * kWidth + v * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) total[i][v] += whole_to_float(sum[i][v]) * scale;
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) sums[v][first + i] = total[i][v];
  }
}

/// Adds delta * x of one outlier to the sums of its row, one vector of tokens after the other.
template <int kVectors>
inline void add_outlier(const TileOutlier& outlier, const float* panel, VecF (*sums)[HXQ_LANES], int64_t i) {
  constexpr int64_t kWidth = kVectors * kLanes;
  panel += outlier.col / kBlock * (kPairs + 2) * kWidth;
  const int up = outlier.col % 2 == 0 ? 16 : 0;
  for (int v = 0; v < kVectors; ++v) {
    const VecI pair = bits_of(load(panel + outlier.col % kBlock / 2 * kWidth + v * kLanes));
    const VecF x = __builtin_convertvector(pair << up >> 16, VecF);
    sums[v][i] += x * load(panel + kPairs * kWidth + v * kLanes) * outlier.delta;
  }
}

/// y (+)= the product of kTileRows rows of decoded levels from `first` on with one panel. `args` is that of the panel.
template <int kVectors>
void multiply_level_tile(const LevelTiles& tiles, int64_t first, const float* panel, int64_t cols,
                         const LinearArgs& args, int64_t row, int64_t rows) {
  constexpr int kHalf = kTileRows / 2;  // integers and floats of as many rows fit the registers
  static_assert(kTileRows % 2 == 0 && kTileRows < HXQ_LANES);
  VecF sums[kVectors][HXQ_LANES] = {};
  for (int64_t i = 0; i < kTileRows; i += kHalf) {
    multiply_levels<kHalf, kVectors>(tiles.level + (first + i) * kLevelStride, panel, blocks_of(cols), sums, i);
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    for (int64_t i = 0; i < kTileRows; ++i) sums[v][i] *= splat(tiles.unit[first + i]);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (uint32_t o = tiles.begin[first + i]; o < tiles.begin[first + i + 1]; ++o) {
      add_outlier<kVectors>(tiles.outlier[o], panel, sums, i);
    }
  }
  for (int64_t v = 0; v < kVectors && v * kLanes < args.tokens; ++v) put_block(sums[v], args, v * kLanes, row, rows);
}

/// One decoded piece of the matrix, `rows` by `cols` at (row, col), with all panels.
void multiply_piece(int64_t panel_floats, const LinearArgs& args, const float* packed, const LevelTiles& tiles,
                    int64_t row, int64_t rows, int64_t col, int64_t cols) {
  for (int64_t first = 0; first < args.tokens; first += kPanelTokens, packed += panel_floats) {
    LinearArgs part = args;
    part.y += first * args.y_stride;
    part.tokens = args.tokens - first < kPanelTokens ? args.tokens - first : kPanelTokens;
    part.bias = col == 0 ? args.bias : nullptr;
    part.accumulate = col > 0 || args.accumulate;
    const int64_t width = panel_width(part.tokens);
    const float* panel = packed + col / kBlock * block_floats(width);
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const int64_t n = rows - i < kTileRows ? rows - i : kTileRows;
      if (width == kLanes) {
        multiply_level_tile<1>(tiles, i, panel, cols, part, row + i, n);
      } else {
        multiply_level_tile<HXQ_PANEL_VECTORS>(tiles, i, panel, cols, part, row + i, n);
      }
    }
  }
}

bool supports_integer_gemm(const CodebookView& weight) { return weight.index_bits == 8 && weight.integer_levels; }

/// `decode(row, rows, col, cols, tiles)` writes levels, units and outliers of W[row .. row + rows, col .. col + cols).
template <class View, class Decode>
void integer_gemm(const View& weight, const LinearArgs& args, const float* packed, int64_t begin, int64_t end,
                  float* memory, Decode decode) {
  const int64_t all_cols = weight.cols, panel_floats = integer_panel_floats(weight);
  const LevelTiles tiles(memory);
  for (int64_t row = begin; row < end; row += kLevelRows) {
    const int64_t rows = end - row < kLevelRows ? end - row : kLevelRows;
    for (int64_t col = 0; col < all_cols; col += kLevelCols) {
      const int64_t cols = all_cols - col < kLevelCols ? all_cols - col : kLevelCols;
      decode(row, rows, col, cols, tiles);
      fill_tile(tiles, rows, cols);
      multiply_piece(panel_floats, args, packed, tiles, row, rows, col, cols);
    }
  }
}

/// Levels of W[row .. row + rows, col .. col + cols), zeros up to a multiple of kBlock, and their units: in
/// codebook_gemm_<target>-inl.h.
void decode_levels(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                   const LevelTiles& tiles);

void codebook_gemm(const CodebookView& weight, const LinearArgs& args, const float* packed, int64_t begin, int64_t end,
                   float* memory) {
  integer_gemm(weight, args, packed, begin, end, memory,
               [&](int64_t row, int64_t rows, int64_t col, int64_t cols, const LevelTiles& tiles) {
                 decode_levels(weight, row, rows, col, cols, tiles);
                 list_outliers(weight, row, rows, col, cols, tiles);
               });
}

template <class View, auto kMultiply>
constexpr IntegerGemm<View> kIntegerGemm{.panel_tokens = kPanelTokens,
                                         .panel_floats = integer_panel_floats<View>,
                                         .pack_panel = pack_integer_panel<View>,
                                         .tile_rows = kTileRows,
                                         .memory_floats = integer_memory_floats,
                                         .multiply = kMultiply};

const IntegerGemm<CodebookView>* choose_codebook_gemm(const CodebookView& weight) {
  return supports_integer_gemm(weight) ? &kIntegerGemm<CodebookView, codebook_gemm> : nullptr;
}

}  // namespace
}  // namespace hxq::kernels::cpu
