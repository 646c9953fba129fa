#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/sequence.h"
#include "kernels/cuda/tensor_core_places.h"

/// How state-space duality of many tokens is divided (ssd_chunks.cu): a block has elements of a head and goes through
/// the chunks of a segment. Some warps multiply: they share the outputs by tokens and elements, the state by rows and
/// elements. The others prepare the next chunk.
namespace hxq::cuda {

/// What a block has of heads with up to kStates states, kChunk tokens at a time.
template <int kStates, int kChunk>
struct ChunkShape {
  static constexpr int kDims = 32;  ///< elements of a head
  static constexpr int kTokenTiles = kChunk / 16, kStateTiles = kStates / 16, kDimTiles = kDims / 16;
  static constexpr int kWarps = kTokenTiles * kDimTiles;  ///< that multiply: each has a tile of the outputs
  static constexpr int kPreparers = 4;                    ///< warps that prepare
  static constexpr int kThreads = 32 * (kWarps + kPreparers);
  static constexpr int kPreparerTiles = kTokenTiles * kDimTiles / kPreparers;
  static constexpr int kRowTiles = kStateTiles > kWarps ? kStateTiles / kWarps : 1;  ///< of the state, a warp's
  static constexpr int kColTiles = kStateTiles * kDimTiles / (kRowTiles * kWarps);   ///< likewise
  static_assert(kRowTiles * kColTiles * kWarps == kStateTiles * kDimTiles);
};

/// The first tiles of 16 states and of 16 elements that a warp has of the state.
template <int kStates, int kChunk>
struct StateShare {
  using Shape = ChunkShape<kStates, kChunk>;
  int row_tile, col_tile;

  HXQ_HOST_DEVICE constexpr explicit StateShare(int warp)
      : row_tile(warp * Shape::kRowTiles % Shape::kStateTiles),
        col_tile(warp * Shape::kRowTiles / Shape::kStateTiles * Shape::kColTiles) {}
};

/// Segments of fewer tokens, where others are in the batch, are quicker one token after the other.
inline constexpr int kFewestChunkTokens = 16;

}  // namespace hxq::cuda
