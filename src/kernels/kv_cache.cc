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

DeviceArray<std::byte> KvCache::new_tile() const {
  DeviceArray<std::byte> tile(*device_, 2 * shape_.tile_bytes(), kWhat);
  tile.clear();  // what pads a head is read
  return tile;
}

void KvCache::reset() noexcept {
  if (std::erase_if(tiles_, [](const auto& tile) { return tile.use_count() > 1; }) > 0) listed_ = 0;
}

void KvCache::copy_from(const KvCache& other, int64_t positions) {
  const int64_t whole = positions / KvCacheView::kTile;
  std::vector<std::shared_ptr<DeviceArray<std::byte>>> tiles(other.tiles_.begin(), other.tiles_.begin() + whole);
  if (positions % KvCacheView::kTile > 0) {
    tiles.push_back(std::make_shared<DeviceArray<std::byte>>(new_tile()));
    tiles.back()->copy_from(*other.tiles_[static_cast<size_t>(whole)]);
  }
  tiles_ = std::move(tiles);
  listed_ = 0;
}

void KvCache::reserve(int64_t positions) {
  const int64_t wanted = (positions + KvCacheView::kTile - 1) / KvCacheView::kTile;
  if (wanted <= listed_) return;
  while (std::ssize(tiles_) < wanted) tiles_.push_back(std::make_shared<DeviceArray<std::byte>>(new_tile()));
  std::vector<std::byte*> pointers;
  for (const auto& tile : tiles_) pointers.push_back(tile->data());
  // More tiles than are wanted are left from a call that then ran out of memory.
  const int64_t have = std::ssize(tiles_);
  if (table_.size() < have) table_ = DeviceArray<std::byte*>(*device_, std::max(have, 2 * table_.size()), kWhat);
  table_.upload(pointers);
  listed_ = have;
}

std::vector<float> KvCache::read(Part part, int64_t positions) const {
  constexpr int64_t kTile = KvCacheView::kTile;
  const bool keys = part == Part::keys;
  const int64_t dim = shape_.head_dim, padded = shape_.padded_dim;
  std::vector<float> out(static_cast<size_t>(shape_.heads * positions * dim));
  std::vector<std::byte> tile(static_cast<size_t>(2 * shape_.tile_bytes()));
  for (int64_t first = 0; first < positions; first += kTile) {
    tiles_[static_cast<size_t>(first / kTile)]->download(tile);
    const std::span<const std::byte> bytes = std::span(tile).subspan(keys ? 0 : tile.size() / 2, tile.size() / 2);
    const std::vector<float> numbers =
        to_float({.dtype = shape_.dtype, .shape = {shape_.heads * padded * kTile}, .bytes = bytes});
    for (int64_t h = 0; h < shape_.heads; ++h) {
      for (int64_t p = first; p < std::min(positions, first + kTile); ++p) {
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t at = keys ? d * kTile + p - first : (p - first) * padded + d;
          out[static_cast<size_t>((h * positions + p) * dim + d)] =
              numbers[static_cast<size_t>(h * padded * kTile + at)];
        }
      }
    }
  }
  return out;
}

}  // namespace hxq::kernels
