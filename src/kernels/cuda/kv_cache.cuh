// Where a position's keys and values lie in the cache, and how they are rotated.

#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {

/// Where a head's keys and values of one position lie, in elements from the start of the tile.
struct CacheSlot {
  void* tile;
  int64_t key, value;

  __device__ CacheSlot(const KvCacheView& cache, int sequence, int64_t position, int64_t head)
      : tile(static_cast<void* const*>(cache.tiles[sequence])[position / KvCacheView::kTile]) {
    const int64_t slot = position % KvCacheView::kTile;
    key = head * cache.padded_dim * KvCacheView::kTile + slot;
    value = (cache.heads + head) * cache.padded_dim * KvCacheView::kTile + slot * cache.padded_dim;
  }

  /// Elements i and i + half of the key and the value.
  __device__ void store(const KvCacheView& cache, int i, int half, float2 k, float2 v) const {
    store_element(tile, cache.dtype, key + int64_t{i} * KvCacheView::kTile, k.x);
    store_element(tile, cache.dtype, key + int64_t{i + half} * KvCacheView::kTile, k.y);
    store_element(tile, cache.dtype, value + i, v.x);
    store_element(tile, cache.dtype, value + i + half, v.y);
  }
};

/// cos and sin of position * frequency; the angle is reduced in double.
__device__ inline float2 rotation_of(int64_t position, float frequency) {
  constexpr double kTurnsPerRadian = 0.15915494309189535;
  const double turns = static_cast<double>(position) * static_cast<double>(frequency) * kTurnsPerRadian;
  float2 rotation;
  sincospif(2 * static_cast<float>(turns - rint(turns)), &rotation.y, &rotation.x);
  return rotation;
}

/// A pair of elements, `half` apart, rotated.
__device__ inline float2 rotate(float2 pair, float2 rotation) {
  return make_float2(pair.x * rotation.x - pair.y * rotation.y, pair.y * rotation.x + pair.x * rotation.y);
}

}  // namespace hxq::cuda
