#pragma once

#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/attention_rounding.cuh"

namespace hxq::cuda {

/// What queries, and keys of a cache of floats, are divided by at least: the product of both multiplies masked scores,
/// which are infinite, and must not vanish.
inline constexpr float kLeastScale = 0x1p-60f;

/// A head's part of a tile of the cache as warpgroup products take it, as numbers of kParts binary16 each: 16-byte
/// pieces of row r are at piece ^ (r % 8). Of a cache of floats keys and values are divided by a power of two each.
template <int kDim, int kParts>
struct WarpgroupTile {
  static constexpr int kTile = static_cast<int>(KvCacheView::kTile);
  alignas(16) __half keys[kParts][kDim][kTile];
  alignas(16) __half values[kParts][kDim / 64][kTile][64];
  alignas(16) float key_scale;
  float value_scale;
};

/// Calls with a null pointer to the type of tiles of attention that `supports_attention_hopper`.
template <class Body>
auto with_placed_tile(const AttentionArgs& args, const Body& body) {
  const bool in_parts = args.precision == Precision::exact && args.cache.dtype == DType::f32;
  if (args.cache.padded_dim == 64) {
    return in_parts ? body(static_cast<WarpgroupTile<64, 2>*>(nullptr))
                    : body(static_cast<WarpgroupTile<64, 1>*>(nullptr));
  }
  return in_parts ? body(static_cast<WarpgroupTile<128, 2>*>(nullptr))
                  : body(static_cast<WarpgroupTile<128, 1>*>(nullptr));
}

/// Whether warpgroup products (9.0) do that attention, which `is_attention_prefill` takes, of the segments that there
/// is room for.
bool supports_attention_hopper(const AttentionArgs& args) noexcept;

/// Bytes of a slot, `RoundedTiles` as it takes them, and `attention` of the segments that have slots, in so many parts.
size_t placed_slot_bytes(const AttentionArgs& args) noexcept;
int hopper_parts(const AttentionArgs& args) noexcept;
Status place_cache(const AttentionArgs& args, const RoundedTiles& to, Stream stream) noexcept;
Status attention_hopper(const AttentionArgs& args, const RoundedTiles& placed, const AttentionParts& parts,
                        Stream stream) noexcept;

}  // namespace hxq::cuda
