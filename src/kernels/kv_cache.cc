#include "kernels/kv_cache.h"

#include <algorithm>

namespace hxq::kernels {
namespace {

/// Floats in the widest vector of any target; also the alignment of rows in a tile.
constexpr int64_t kWidest = 16;

constexpr std::string_view kWhat = "the key-value cache";

}  // namespace

KvCacheView KvCache::shape(int64_t heads, int64_t head_dim, DType dtype) noexcept {
  return {
      .heads = heads, .head_dim = head_dim, .padded_dim = (head_dim + kWidest - 1) / kWidest * kWidest, .dtype = dtype};
}

KvCache::KvCache(const Device& device, int64_t heads, int64_t head_dim, DType dtype)
    : device_(&device), shape_(shape(heads, head_dim, dtype)) {}

void KvCache::reserve(int64_t positions) {
  const int64_t wanted = (positions + KvCacheView::kTile - 1) / KvCacheView::kTile;
  if (wanted <= listed_) return;
  while (std::ssize(tiles_) < wanted) {
    DeviceArray<std::byte> tile(*device_, 2 * shape_.tile_bytes(), kWhat);
    tile.clear();  // what pads a head is read
    tiles_.push_back(std::move(tile));
  }
  std::vector<std::byte*> pointers;
  for (const DeviceArray<std::byte>& tile : tiles_) pointers.push_back(tile.data());
  // More tiles than are wanted are left from a call that then ran out of memory.
  const int64_t have = std::ssize(tiles_);
  if (table_.size() < have) table_ = DeviceArray<std::byte*>(*device_, std::max(have, 2 * table_.size()), kWhat);
  table_.upload(pointers);
  listed_ = have;
}

}  // namespace hxq::kernels
