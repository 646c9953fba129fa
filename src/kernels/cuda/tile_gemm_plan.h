#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/host_device.h"

/// How the product for many tokens spreads a matrix over blocks.
///
/// A tile is 128 rows of the matrix with `columns` tokens. Clusters take units in turn: of `share` adjacent row tiles,
/// one for each of its blocks, which bring each other x, one tile of tokens and one of `splits` parts of the chunks of
/// 64 columns. Only where all units run at once are there several parts; blocks do not share x then.
namespace hxq::cuda {

struct TileGemmPlan {
  static constexpr int kRows = 128;
  static constexpr int kChunkCols = 64;
  static constexpr int kMostColumns = 256;
  static constexpr int kMostSplits = 8;

  // Numbers of tiles are of 32 bits: longer divisions are dozens of instructions, each of which is fetched from afar.
  int columns = 64;  ///< tokens of a tile: 64, 128 or 256
  int splits = 1;
  int share = 1;       ///< blocks of a cluster that have different rows: 1 or 2
  bool joins = false;  ///< the two splits of a tile are a cluster, and add up through each other's shared memory
  int row_tiles = 1;
  int token_tiles = 1;
  int chunks = 1;
  int clusters = 1;
  int64_t cost = 0;  ///< about as many clocks as it takes

  HXQ_HOST_DEVICE int row_groups() const { return (row_tiles + share - 1) / share; }
  HXQ_HOST_DEVICE int units() const { return row_groups() * token_tiles * splits; }
  HXQ_HOST_DEVICE int blocks_of_cluster() const { return joins ? 2 : share; }
  HXQ_HOST_DEVICE int split_of(int unit) const { return unit % splits; }
  HXQ_HOST_DEVICE int token_tile_of(int unit) const { return unit / splits % token_tiles; }
  /// Of the cluster's block `slot`; behind the last one where row tiles are an odd number. Units of the same rows
  /// follow each other.
  HXQ_HOST_DEVICE int row_tile_of(int unit, int slot) const { return unit / splits / token_tiles * share + slot; }
  /// Even, as two chunks of bytes come together.
  HXQ_HOST_DEVICE int first_chunk(int split) const {
    return split == splits ? chunks : (chunks + 1) / 2 * split / splits * 2;
  }
  /// Where the rows begin of which the block of that split adds up the outliers.
  HXQ_HOST_DEVICE int first_outlier_row(int split) const { return kRows * split / splits; }
  /// With those of row tiles that fill up the last cluster.
  HXQ_HOST_DEVICE int tiles() const { return row_groups() * share * token_tiles; }
};

/// Tokens of the widest tile for a number of tokens, and that number filled up to whole tiles: it never falls as
/// `tokens` rises.
inline int widest_tile(int64_t tokens) { return tokens <= 64 ? 64 : tokens <= 128 ? 128 : TileGemmPlan::kMostColumns; }
inline int64_t most_padded_tokens(int64_t tokens) {
  const int64_t columns = widest_tile(tokens);
  return (tokens + columns - 1) / columns * columns;
}

/// `rows`, `tokens` at least 1. `blocks`, `pairs`: blocks and clusters of two of them that run at once.
inline TileGemmPlan plan_tile_gemm(int64_t rows, int64_t cols, int64_t tokens, int blocks, int pairs) {
  constexpr int kLeastChunks = 4;  // of a split: fewer are not worth the sums that are added up
  TileGemmPlan best;
  for (int columns = 64; columns <= widest_tile(tokens); columns *= 2) {
    TileGemmPlan plan;
    plan.columns = columns;
    plan.row_tiles = static_cast<int>((rows + TileGemmPlan::kRows - 1) / TileGemmPlan::kRows);
    plan.token_tiles = static_cast<int>((tokens + columns - 1) / columns);
    plan.chunks = static_cast<int>((cols + TileGemmPlan::kChunkCols - 1) / TileGemmPlan::kChunkCols);
    for (int splits = 1; splits <= TileGemmPlan::kMostSplits; ++splits) {
      plan.splits = splits;
      plan.joins = splits == 2 && pairs > 0;
      // The more tokens, the more x each block would read by itself.
      plan.share = splits == 1 && columns > 64 && plan.row_tiles > 1 && pairs > 0 ? 2 : 1;
      const int room = plan.share == 2 ? pairs : plan.joins ? 2 * pairs : blocks;
      if (splits > 1 && (plan.units() > room || plan.chunks < splits * kLeastChunks)) break;
      plan.clusters = std::min(plan.units(), room);
      // Clocks of a chunk: of shared memory (x that comes and is read twice; lookups, bytes that come and go), or of
      // weights on their way. Those of a tile besides: the first chunk, and sums that are added up.
      const int shared_memory = 3 * columns + 384;
      const int memory = 700 * plan.clusters * plan.share / blocks;
      const int sums = 2000 + 4 * columns + (splits > 2 ? 8000 + 140 * columns : splits > 1 ? 2000 + 8 * columns : 0);
      const int64_t rounds = (plan.units() + plan.clusters - 1) / plan.clusters;
      const int steps = (plan.chunks + splits - 1) / splits;
      plan.cost = rounds * (int64_t{steps} * std::max(shared_memory, memory) + sums);
      if (best.cost == 0 || plan.cost < best.cost) best = plan;
    }
  }
  return best;
}

/// Whether the plan takes less time than decoding panels for cuBLAS, whose time is mostly that of reading and writing
/// weights, and rises with the tokens (measured on an H100).
inline bool beats_panels(const TileGemmPlan& plan, int64_t rows, int64_t cols, int64_t tokens) {
  constexpr int64_t kPacking = 5000;
  return plan.cost + kPacking < rows * cols / 1024 * (1340 + 3 * tokens) / 1000;
}

}  // namespace hxq::cuda
