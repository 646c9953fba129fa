#include "codec/codebook/index_packing.h"

#include <algorithm>
#include <cstring>

namespace hxq {
namespace {

uint32_t byte_at(std::span<const std::byte> bytes, int64_t i) { return static_cast<uint32_t>(bytes[i]); }

uint32_t packed12_at(std::span<const std::byte> indices, int64_t i) {
  const int64_t at = i / 2 * 3;
  if (i % 2 == 0) return byte_at(indices, at) | (byte_at(indices, at + 1) & 0xfu) << 8;
  return byte_at(indices, at + 1) >> 4 | byte_at(indices, at + 2) << 4;
}

uint32_t u16_at(std::span<const std::byte> indices, int64_t i) {
  uint16_t index;
  std::memcpy(&index, indices.data() + 2 * i, sizeof(index));
  return index;
}

}  // namespace

int64_t index_bytes(IndexLayout layout, int64_t count) noexcept {
  switch (layout) {
    case IndexLayout::u8:
      return count;
    case IndexLayout::u16:
      return 2 * count;
    case IndexLayout::packed12:
      return count / 2 * 3;
  }
  return 0;
}

uint32_t index_at(IndexLayout layout, std::span<const std::byte> indices, int64_t i) noexcept {
  switch (layout) {
    case IndexLayout::u8:
      return byte_at(indices, i);
    case IndexLayout::u16:
      return u16_at(indices, i);
    case IndexLayout::packed12:
      return packed12_at(indices, i);
  }
  return 0;
}

void unpack_indices(IndexLayout layout, std::span<const std::byte> indices, int64_t first,
                    std::span<uint16_t> out) noexcept {
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<uint16_t>(index_at(layout, indices, first + static_cast<int64_t>(i)));
  }
}

uint32_t largest_index(IndexLayout layout, std::span<const std::byte> indices, int64_t count) noexcept {
  uint32_t largest = 0;
  // One loop a layout, so that the compiler can make vectors of each.
  switch (layout) {
    case IndexLayout::u8: {
      uint8_t top = 0;
      for (int64_t i = 0; i < count; ++i) top = std::max(top, static_cast<uint8_t>(indices[i]));
      return top;
    }
    case IndexLayout::u16: {
      uint16_t top = 0;
      for (int64_t i = 0; i < count; ++i) top = std::max(top, static_cast<uint16_t>(u16_at(indices, i)));
      return top;
    }
    case IndexLayout::packed12:
      for (int64_t i = 0; i < count; ++i) largest = std::max(largest, packed12_at(indices, i));
      return largest;
  }
  return largest;
}

}  // namespace hxq
