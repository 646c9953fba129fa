#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

/// How the product of decoded tiles spreads a matrix over blocks.
///
/// A tile is 128 rows of the matrix with `columns` tokens; where tiles are fewer than multiprocessors, `splits` blocks
/// share one, each with a part of its chunks of 64 columns. Blocks take units (a tile's split) in turn.
namespace hxq::cuda {

struct TileGemmPlan {
  static constexpr int kRows = 128;
  static constexpr int kChunkCols = 64;
  static constexpr int kMostColumns = 256;

  int columns = 16;  ///< tokens of a tile: 16, 32, 64, 128 or 256
  int splits = 1;
  int64_t row_tiles = 1;
  int64_t token_tiles = 1;
  int64_t chunks = 1;
  int64_t blocks = 1;

  HXQ_HOST_DEVICE int64_t units() const { return row_tiles * token_tiles * splits; }
  HXQ_HOST_DEVICE int64_t tile_of(int64_t unit) const { return unit / splits; }
  HXQ_HOST_DEVICE int split_of(int64_t unit) const { return static_cast<int>(unit % splits); }
  /// Units that read the same rows follow each other.
  HXQ_HOST_DEVICE int64_t first_row(int64_t tile) const { return tile / token_tiles * kRows; }
  HXQ_HOST_DEVICE int64_t first_token(int64_t tile) const { return tile % token_tiles * columns; }
  HXQ_HOST_DEVICE int first_chunk(int split) const { return static_cast<int>(chunks * split / splits); }
};

/// `rows`, `tokens`, `blocks` at least 1.
inline TileGemmPlan plan_tile_gemm(int64_t rows, int64_t cols, int64_t tokens, int64_t blocks) {
  constexpr int64_t kLeastChunks = 4;  // of a split: fewer are not worth the sums that are added up
  TileGemmPlan best;
  int64_t best_cost = -1;
  for (int columns = 16; columns <= TileGemmPlan::kMostColumns; columns *= 2) {
    TileGemmPlan plan;
    plan.columns = columns;
    plan.row_tiles = (rows + TileGemmPlan::kRows - 1) / TileGemmPlan::kRows;
    plan.token_tiles = (tokens + columns - 1) / columns;
    plan.chunks = (cols + TileGemmPlan::kChunkCols - 1) / TileGemmPlan::kChunkCols;
    const int64_t tiles = plan.row_tiles * plan.token_tiles;
    const int64_t most_splits = plan.chunks / kLeastChunks;
    if (2 * tiles <= blocks && most_splits > 1) {
      plan.splits = static_cast<int>(blocks / tiles < most_splits ? blocks / tiles : most_splits);
    }
    plan.blocks = plan.units() < blocks ? plan.units() : blocks;
    // A chunk takes as long as its products do, or as its weights take to be decoded.
    const int64_t chunk_cost = columns > 128 ? columns : 128;
    const int64_t rounds = (plan.units() + plan.blocks - 1) / plan.blocks;
    const int64_t cost = rounds * ((plan.chunks + plan.splits - 1) / plan.splits) * chunk_cost;
    if (best_cost >= 0 && cost >= best_cost) continue;
    best = plan;
    best_cost = cost;
  }
  return best;
}

}  // namespace hxq::cuda
