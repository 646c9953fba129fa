#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/packed_x.h"

/// How the tensor-core product spreads a matrix, or several with the same x, over blocks.
///
/// A tile is row_groups * 64 rows of the matrix with one tile of tokens. Its columns are cut into steps of k_groups
/// chunks: each of a block's warpgroups has 64 rows of the tile and one chunk of every step. A cluster of `splits`
/// blocks shares a tile, each with a part of its steps, and adds up through shared memory; clusters take tiles of their
/// matrix in turn.
namespace hxq::cuda {

struct GemmPlan {
  static constexpr int kMostColumns = 128;  ///< of the right operand, one or two for each token
  static constexpr int kMostSplits = 8;     ///< blocks of a cluster that every GPU has room for

  int columns = 8;  ///< of one tile: 8, 16, 32, 64 or 128
  int parts = 1;    ///< 2: each token has a column for the upper and one for the lower bits of x
  int row_groups = 4;
  int k_groups = 1;
  int splits = 1;
  int64_t token_tiles = 1;
  int64_t row_tiles = 1;  ///< of all matrices
  int steps = 1;          ///< of k_groups chunks of kChunkCols columns
  int64_t clusters = 1;

  // Divisions of 64 bits are dozens of instructions, each of which is fetched from afar: none where it can be helped.
  HXQ_HOST_DEVICE int tile_tokens() const { return parts == 2 ? columns / 2 : columns; }
  HXQ_HOST_DEVICE int64_t padded_tokens() const { return token_tiles * tile_tokens(); }
  HXQ_HOST_DEVICE int tile_rows() const { return row_groups * 64; }
  HXQ_HOST_DEVICE int64_t tiles() const { return row_tiles * token_tiles; }
  int64_t row_tiles_of(int64_t rows) const { return (rows + tile_rows() - 1) / tile_rows(); }
  /// Chunks of packed x, those that fill up the last step included.
  HXQ_HOST_DEVICE int64_t padded_chunks() const { return int64_t{steps} * k_groups; }
  HXQ_HOST_DEVICE int first_step(int split) const { return steps * split / splits; }
  /// Tiles of the same rows follow each other.
  HXQ_HOST_DEVICE int64_t first_row(int64_t tile) const {
    return (token_tiles == 1 ? tile : tile / token_tiles) * tile_rows();
  }
  HXQ_HOST_DEVICE int64_t token_tile(int64_t tile) const { return token_tiles == 1 ? 0 : tile % token_tiles; }
};

inline constexpr int kGemmWarpgroups = 4;  ///< of a block

/// Columns of the right operand that a plan for up to `tokens` tokens can have.
inline int64_t most_columns(int64_t tokens, int parts) {
  int64_t columns = 16;
  while (columns < GemmPlan::kMostColumns && columns < tokens * parts) columns *= 2;
  return columns < tokens * parts ? tokens * parts + GemmPlan::kMostColumns - 1 : columns;
}

/// Values of y of a tile, at most.
inline int64_t most_tile_values(int64_t tokens) { return std::min<int64_t>(most_columns(tokens, 1), 128) * 256; }

/// For matrices of so many `rows` each. `cols`, `tokens` and all rows at least 1. `clusters[n]`: clusters of n blocks
/// that run at once, up to kMostSplits; 0: not to be used; [1] is the number of multiprocessors. `any_shape`: tiles of
/// every height there are; otherwise only those of all warpgroups.
inline GemmPlan plan_gemm(std::span<const int64_t> rows, int64_t cols, int64_t tokens, int parts, bool any_shape,
                          const int* clusters) {
  GemmPlan best;
  int64_t best_cost = -1;
  for (int columns = parts == 2 ? 16 : 8; columns <= GemmPlan::kMostColumns; columns *= 2) {
    if (best_cost >= 0 && columns >= 2 * tokens * parts) break;
    const int most_k_groups = !any_shape ? 1 : columns <= 32 ? 4 : columns <= 64 ? 2 : 1;
    for (int k_groups = 1; k_groups <= most_k_groups; k_groups *= 2) {
      GemmPlan plan{.columns = columns, .parts = parts, .row_groups = kGemmWarpgroups / k_groups, .k_groups = k_groups};
      plan.token_tiles = (tokens + plan.tile_tokens() - 1) / plan.tile_tokens();
      plan.row_tiles = 0;
      for (const int64_t count : rows) plan.row_tiles += plan.row_tiles_of(count);
      const int64_t chunks = (cols + kChunkCols - 1) / kChunkCols;
      plan.steps = static_cast<int>((chunks + k_groups - 1) / k_groups);
      for (int splits = 1; splits <= GemmPlan::kMostSplits && splits <= plan.steps; ++splits) {
        // Clusters that share tiles have one each: to begin another costs more than it gains.
        if (clusters[splits] == 0 || (splits > 1 && plan.tiles() > clusters[splits])) continue;
        plan.splits = splits;
        plan.clusters = std::min<int64_t>(plan.tiles(), clusters[splits]);
        // Clocks of a step of all warpgroups: of products, of shared memory (lookups, and x and weights that
        // come and go), of weights on their way.
        const int64_t products = kGemmWarpgroups * int64_t{columns} * 2;
        const int64_t shared_memory = (kGemmWarpgroups * (int64_t{192} + columns) + k_groups * columns) * 5 / 4;
        const int64_t memory = kGemmWarpgroups * 310 * plan.clusters * splits / clusters[1];
        const int64_t rounds = (plan.tiles() + plan.clusters - 1) / plan.clusters;
        const int64_t steps = (plan.steps + splits - 1) / splits;
        // What a tile takes besides: outliers, and sums on their way through shared memory.
        const int64_t sums = 1000 + 16 * columns * k_groups + (splits > 1 ? 2000 + 16 * columns : 0);
        const int64_t cost = rounds * (steps * std::max({products, shared_memory, memory}) + sums);
        if (best_cost >= 0 && cost >= best_cost) continue;
        best = plan;
        best_cost = cost;
      }
    }
  }
  return best;
}

}  // namespace hxq::cuda
