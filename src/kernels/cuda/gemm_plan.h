#pragma once

#include <cstdint>

#include "kernels/cuda/packed_x.h"

/// How the tensor-core product spreads a matrix over blocks.
///
/// A tile is warpgroups * 64 rows of the matrix with one tile of tokens. The chunks of all tiles, tile after tile, are
/// one list of items that is cut into equal parts, one for each block, whatever the shape: a tile may be shared by
/// several blocks, the last of which to be done adds up their sums, always in the same order.
namespace hxq::cuda {

/// Columns of the right operand, one or two for each token.
inline constexpr int kGemmMaxColumns = 128;

struct GemmPlan {
  int columns = 8;     ///< of one tile: 8, 16, 32, 64 or 128
  int parts = 1;       ///< 2: each token has a column for the upper and one for the lower bits of x
  int warpgroups = 4;  ///< of 64 rows each
  int64_t token_tiles = 1;
  int64_t row_tiles = 1;
  int64_t chunks = 1;  ///< of kChunkCols columns of the matrix
  int64_t blocks = 1;

  HXQ_HOST_DEVICE int tile_tokens() const { return columns / parts; }
  HXQ_HOST_DEVICE int tile_rows() const { return warpgroups * 64; }
  HXQ_HOST_DEVICE int64_t tiles() const { return row_tiles * token_tiles; }
  HXQ_HOST_DEVICE int64_t items() const { return tiles() * chunks; }
  HXQ_HOST_DEVICE int64_t block_begin(int64_t block) const { return items() * block / blocks; }
  HXQ_HOST_DEVICE int64_t block_of(int64_t item) const { return ((item + 1) * blocks - 1) / items(); }
  /// Tiles of the same rows follow each other.
  HXQ_HOST_DEVICE int64_t first_row(int64_t tile) const { return tile / token_tiles * tile_rows(); }
  HXQ_HOST_DEVICE int64_t token_tile(int64_t tile) const { return tile % token_tiles; }
};

/// Warpgroups of a block, as registers allow: more of them share what x costs.
constexpr int warpgroups_of(int columns, bool two_levels) {
  if (two_levels) return columns <= 32 ? 3 : 2;
  return columns <= 16 ? 4 : 3;
}

inline GemmPlan plan_gemm(int64_t rows, int64_t cols, int64_t tokens, int parts, bool two_levels, int64_t blocks) {
  GemmPlan plan;
  plan.parts = parts;
  if (parts == 2) plan.columns = 16;  // a lane has both parts of its tokens
  while (plan.columns < kGemmMaxColumns && plan.columns < tokens * parts) plan.columns *= 2;
  plan.token_tiles = (tokens + plan.tile_tokens() - 1) / plan.tile_tokens();
  plan.warpgroups = warpgroups_of(plan.columns, two_levels);
  plan.row_tiles = (rows + plan.tile_rows() - 1) / plan.tile_rows();
  plan.chunks = (cols + kChunkCols - 1) / kChunkCols;
  // Adding up the sums of many blocks costs more than a few chunks do.
  constexpr int64_t kLeastItems = 4;
  const int64_t useful = (plan.items() + kLeastItems - 1) / kLeastItems;
  plan.blocks = useful < blocks ? useful : blocks;
  return plan;
}

}  // namespace hxq::cuda
