#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "hxq/tensor.h"

namespace hxq::kernels {

/// The cache as attention reads and extends it. Positions are kept in tiles of kTile; a tile holds, head after head,
///     keys   [padded_dim, kTile]: transposed, so that lanes are positions in the product with a query
///     values [kTile, padded_dim]: lanes are elements of the head
/// in `dtype`. Elements past head_dim are zero in keys and values alike.
struct KvCacheView {
  static constexpr int64_t kTile = 64;

  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t padded_dim = 0;  ///< head_dim rounded up to whole vectors of every target
  DType dtype = DType::f32;
  std::byte* const* keys = nullptr;    // by tile
  std::byte* const* values = nullptr;  // by tile
};

/// Keys and values of one attention layer for one sequence. Memory is taken as the sequence grows.
class KvCache {
 public:
  /// `dtype`: F32 or F16.
  KvCache(int64_t heads, int64_t head_dim, DType dtype);

  /// Makes room for positions [0, positions); what is stored stays where it is. Not while a team uses the cache.
  /// Throws std::bad_alloc.
  void reserve(int64_t positions);

  /// Valid until the next `reserve`.
  KvCacheView view() const noexcept;

  /// Memory taken so far.
  int64_t bytes() const noexcept;

 private:
  int64_t tile_bytes() const noexcept;  // of the keys alone, or the values

  struct Free {
    void operator()(std::byte* memory) const noexcept;
  };
  int64_t heads_;
  int64_t head_dim_;
  int64_t padded_dim_;
  DType dtype_;
  std::vector<std::unique_ptr<std::byte[], Free>> tiles_;  // each: keys, then values
  std::vector<std::byte*> keys_;
  std::vector<std::byte*> values_;
};

}  // namespace hxq::kernels
