#include "kernels/kv_cache.h"

#include <cstring>
#include <new>

namespace hxq::kernels {
namespace {

/// Floats in the widest vector of any target; also the alignment of rows in a tile.
constexpr int64_t kWidest = 16;
constexpr std::align_val_t kAlignment{64};

}  // namespace

void KvCache::Free::operator()(std::byte* memory) const noexcept { ::operator delete[](memory, kAlignment); }

KvCache::KvCache(int64_t heads, int64_t head_dim, DType dtype)
    : heads_(heads), head_dim_(head_dim), padded_dim_((head_dim + kWidest - 1) / kWidest * kWidest), dtype_(dtype) {}

int64_t KvCache::tile_bytes() const noexcept {
  return heads_ * padded_dim_ * KvCacheView::kTile * static_cast<int64_t>(size_of(dtype_));
}

void KvCache::reserve(int64_t positions) {
  const auto tiles = static_cast<size_t>((positions + KvCacheView::kTile - 1) / KvCacheView::kTile);
  const auto bytes = static_cast<size_t>(tile_bytes());
  while (tiles_.size() < tiles) {
    std::unique_ptr<std::byte[], Free> tile(static_cast<std::byte*>(::operator new[](2 * bytes, kAlignment)));
    std::memset(tile.get(), 0, 2 * bytes);
    tiles_.reserve(tiles);
    keys_.reserve(tiles);
    values_.reserve(tiles);
    keys_.push_back(tile.get());
    values_.push_back(tile.get() + bytes);
    tiles_.push_back(std::move(tile));
  }
}

KvCacheView KvCache::view() const noexcept {
  return {.heads = heads_,
          .head_dim = head_dim_,
          .padded_dim = padded_dim_,
          .dtype = dtype_,
          .keys = keys_.data(),
          .values = values_.data()};
}

int64_t KvCache::bytes() const noexcept { return static_cast<int64_t>(tiles_.size()) * 2 * tile_bytes(); }

}  // namespace hxq::kernels
