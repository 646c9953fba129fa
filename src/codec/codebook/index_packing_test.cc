#include "codec/codebook/index_packing.h"

#include <gtest/gtest.h>

#include <vector>

namespace hxq {
namespace {

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> out;
  for (int value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

/// Bit i of the stream is bit i % 12 of index i / 12: the layout said another way.
std::vector<std::byte> pack_bit_by_bit(const std::vector<uint16_t>& indices) {
  std::vector<std::byte> out(indices.size() * 3 / 2);
  for (size_t bit = 0; bit < indices.size() * 12; ++bit) {
    if (indices[bit / 12] >> (bit % 12) & 1) out[bit / 8] |= static_cast<std::byte>(1 << bit % 8);
  }
  return out;
}

TEST(IndexPacking, TwelveBitTestVector) {
  const std::vector<std::byte> packed = bytes({0xbc, 0x3a, 0x12});
  EXPECT_EQ(index_at(IndexLayout::packed12, packed, 0), 0xabcu);
  EXPECT_EQ(index_at(IndexLayout::packed12, packed, 1), 0x123u);
  EXPECT_EQ(pack_bit_by_bit({0xabc, 0x123}), packed);
}

TEST(IndexPacking, EveryTwelveBitIndexInBothPlaces) {
  std::vector<uint16_t> indices;
  for (int i = 0; i < 4096; ++i) {
    indices.push_back(static_cast<uint16_t>(i));
    indices.push_back(static_cast<uint16_t>(i * 2654435761u >> 7 & 0xfff));
    indices.push_back(static_cast<uint16_t>(4095 - i));
    indices.push_back(static_cast<uint16_t>(i));
  }
  const std::vector<std::byte> packed = pack_bit_by_bit(indices);
  EXPECT_EQ(index_bytes(IndexLayout::packed12, static_cast<int64_t>(indices.size())),
            static_cast<int64_t>(packed.size()));
  std::vector<uint16_t> out(indices.size());
  unpack_indices(IndexLayout::packed12, packed, 0, out);
  EXPECT_EQ(out, indices);
  for (size_t first : {1u, 2u, 3u}) {
    for (size_t count : {0u, 1u, 2u, 5u}) {
      std::vector<uint16_t> part(count);
      unpack_indices(IndexLayout::packed12, packed, static_cast<int64_t>(first), part);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), indices.begin() + static_cast<ptrdiff_t>(first)));
    }
  }
}

TEST(IndexPacking, WholeBytesAndUnalignedWords) {
  const std::vector<std::byte> data = bytes({9, 0x34, 0x12, 0xff, 0xff});
  EXPECT_EQ(index_at(IndexLayout::u8, data, 3), 0xffu);
  EXPECT_EQ(index_at(IndexLayout::u16, std::span(data).subspan(1), 0), 0x1234u);
  EXPECT_EQ(index_at(IndexLayout::u16, std::span(data).subspan(1), 1), 0xffffu);
  EXPECT_EQ(index_bytes(IndexLayout::u8, 5), 5);
  EXPECT_EQ(index_bytes(IndexLayout::u16, 5), 10);
}

TEST(IndexPacking, FindsTheLargestWhereverItIs) {
  for (IndexLayout layout : {IndexLayout::u8, IndexLayout::u16, IndexLayout::packed12}) {
    constexpr size_t kCount = 70;
    for (size_t at = 0; at < kCount; ++at) {
      std::vector<uint16_t> indices(kCount, 3);
      const uint16_t top = layout == IndexLayout::u8 ? 200 : layout == IndexLayout::u16 ? 50000 : 3000;
      indices[at] = top;
      std::vector<std::byte> data;
      if (layout == IndexLayout::packed12) data = pack_bit_by_bit(indices);
      for (uint16_t index : indices) {
        if (layout == IndexLayout::packed12) break;
        data.push_back(static_cast<std::byte>(index & 0xff));
        if (layout == IndexLayout::u16) data.push_back(static_cast<std::byte>(index >> 8));
      }
      EXPECT_EQ(largest_index(layout, data, kCount), top);
      EXPECT_EQ(largest_index(layout, data, static_cast<int64_t>(at)), at == 0 ? 0u : 3u);
    }
  }
}

}  // namespace
}  // namespace hxq
