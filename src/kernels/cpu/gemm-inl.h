// Product of a decoded tile of weight rows with panels of tokens: lanes are tokens, a weight is broadcast, sums stay in
// registers (the micro-kernel of Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
// HXQ_TILE_ROWS weight rows by HXQ_PANEL_VECTORS vectors of tokens.

#pragma once

#include <utility>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kTileRows = HXQ_TILE_ROWS;
constexpr int64_t kPanelVectors = HXQ_PANEL_VECTORS;
constexpr int64_t kPanelTokens = kPanelVectors * kLanes;

/// A panel is a single vector wide when that is enough.
int64_t panel_width(int64_t tokens) { return tokens <= kLanes ? kLanes : kPanelTokens; }

/// Interleaves the lower (or upper) halves of two vectors.
template <bool kUpper, int... kLane>
inline VecF interleave_lanes(VecF a, VecF b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, ((kUpper ? kLanes / 2 : 0) + kLane / 2 + (kLane % 2) * kLanes)...);
}
template <bool kUpper>
inline VecF interleave(VecF a, VecF b) {
  return interleave_lanes<kUpper>(a, b, std::make_integer_sequence<int, kLanes>());
}

/// rows[i][j] = rows[j][i]: each of log2(kLanes) rounds is a perfect shuffle of all elements.
inline void transpose(VecF (&rows)[HXQ_LANES]) {
#pragma GCC unroll 4
  for (int64_t round = 1; round < kLanes; round *= 2) {
    VecF next[HXQ_LANES];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<false>(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = interleave<true>(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

void pack_columns(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, int64_t width, float* panel) {
  for (int64_t first = 0; first < width; first += kLanes) {
    for (int64_t col = 0; col < cols; col += kLanes) {
      const int64_t n = cols - col < kLanes ? cols - col : kLanes;
      VecF rows[HXQ_LANES];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* from = x + (first + i) * x_stride + col;
        rows[i] = first + i >= tokens ? VecF{} : n == kLanes ? load(from) : load_first(from, n);
      }
      transpose(rows);
      for (int64_t i = 0; i < n; ++i) store(panel + (col + i) * width + first, rows[i]);
    }
  }
}

void pack_panel(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, float* panel) {
  pack_columns(x, x_stride, tokens, cols, panel_width(tokens), panel);
}

/// sums[v][i] over tokens of row i, i < kLanes, are transposed and stored to y[t, row ..].
inline void put_block(VecF (&sums)[HXQ_LANES], const LinearArgs& args, int64_t first, int64_t row, int64_t rows) {
  transpose(sums);
  const int64_t tokens = args.tokens - first < kLanes ? args.tokens - first : kLanes;
  const VecF bias = args.bias ? load_first(args.bias + row, rows) : VecF{};
  for (int64_t t = 0; t < tokens; ++t) {
    float* y = args.y + (first + t) * args.y_stride + row;
    VecF value = sums[t] + bias;
    if (args.accumulate) value += load_first(y, rows);
    store_first(y, value, rows);
  }
}

template <int kVectors>
void multiply(const float* tile, const float* panel, int64_t cols, const LinearArgs& args, int64_t row, int64_t rows) {
  VecF sum[HXQ_TILE_ROWS][kVectors] = {};
  for (int64_t c = 0; c < cols; ++c) {
    VecF x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) x[v] = load(panel + (c * kVectors + v) * kLanes);
#pragma GCC unroll 14
    for (int i = 0; i < HXQ_TILE_ROWS; ++i) {
      const VecF w = splat(tile[i * kTileStride + c]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += w * x[v];
    }
  }
  static_assert(HXQ_TILE_ROWS < HXQ_LANES, "put_block transposes one square block for each vector");
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    if (v * kLanes >= args.tokens) break;
    VecF block[HXQ_LANES] = {};
#pragma GCC unroll 16
    for (int i = 0; i < HXQ_TILE_ROWS; ++i) block[i] = sum[i][v];
    put_block(block, args, v * kLanes, row, rows);
  }
}

void multiply_tile(const float* tile, const float* panel, int64_t cols, const LinearArgs& args, int64_t row,
                   int64_t rows) {
  if (panel_width(args.tokens) == kLanes) {
    multiply<1>(tile, panel, cols, args, row, rows);
  } else {
    multiply<HXQ_PANEL_VECTORS>(tile, panel, cols, args, row, rows);
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
