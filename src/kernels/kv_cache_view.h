#pragma once

#include <cstddef>
#include <cstdint>

#include "hxq/tensor.h"

namespace hxq::kernels {

/// The caches of a batch's sequences as attention reads and extends them. Positions are kept in tiles of kTile; a tile
/// holds, head after head,
///     keys   [padded_dim, kTile]: transposed, so that lanes are positions in the product with a query
///     values [kTile, padded_dim]: lanes are elements of the head
/// in `dtype`. Elements past head_dim are zero in keys and values alike.
struct KvCacheView {
  static constexpr int64_t kTile = 64;

  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t padded_dim = 0;  ///< head_dim rounded up to whole vectors of every target
  DType dtype = DType::f32;
  /// [segments]: std::byte* [tiles] of each, a tile's keys and then its values.
  void* const* tiles = nullptr;

  /// Bytes of a tile's keys, and of its values.
  int64_t tile_bytes() const noexcept { return heads * padded_dim * kTile * static_cast<int64_t>(size_of(dtype)); }
};

}  // namespace hxq::kernels
