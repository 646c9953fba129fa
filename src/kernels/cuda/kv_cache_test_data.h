#pragma once

#include "kernels/cuda/test_device.h"
#include "kernels/kv_cache_view.h"

/// Caches of keys and values for tests of the CUDA kernels.
namespace hxq::cuda::testing {

/// A cache whose tiles lie in no order, what it does not hold being NaN but for the padding of heads.
struct TestCache {
  TestCache(int64_t kv_heads, int64_t head_dim, size_t sequences, int64_t positions, DType cache_dtype)
      : heads(kv_heads),
        dim(head_dim),
        dtype(cache_dtype),
        padded((dim + 15) / 16 * 16),
        sequence_tiles(static_cast<size_t>((positions + kTile - 1) / kTile)),
        tile_bytes(static_cast<size_t>(2 * heads * padded * kTile) * element_bytes(dtype)),
        tiles(sequence_tiles * sequences * tile_bytes),
        tables(sequence_tiles * sequences),
        table_of(sequences) {
    std::vector<void*> addresses, starts;
    for (size_t i = 0; i < sequence_tiles * sequences; ++i) addresses.push_back(tiles.data() + offset(i));
    for (size_t s = 0; s < sequences; ++s) starts.push_back(tables.data() + s * sequence_tiles);
    EXPECT_EQ(cudaMemcpy(tables.data(), addresses.data(), addresses.size() * sizeof(void*), cudaMemcpyHostToDevice),
              cudaSuccess);
    EXPECT_EQ(cudaMemcpy(table_of.data(), starts.data(), starts.size() * sizeof(void*), cudaMemcpyHostToDevice),
              cudaSuccess);
  }

  /// Gives each sequence keys and values of these sizes at positions [0, held).
  void fill(const std::vector<int>& held, float key_size, float value_size, Random& random) const {
    std::vector<std::byte> bytes = tiles.values();
    for (size_t s = 0; s < held.size(); ++s) {
      for (int64_t p = 0; p < static_cast<int64_t>(sequence_tiles) * kTile; ++p) {
        for (int64_t h = 0; h < heads; ++h) {
          const auto put = [&](int64_t i, float key, float value) {
            write_element(bytes.data() + key_at(s, p, h, i), dtype, key);
            write_element(bytes.data() + value_at(s, p, h, i), dtype, value);
          };
          for (int64_t i = 0; i < dim && p < held[s]; ++i)
            put(i, key_size * random.normal(), value_size * random.normal());
          for (int64_t i = dim; i < padded; ++i) put(i, 0, 0);
        }
      }
    }
    EXPECT_EQ(cudaMemcpy(tiles.data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), cudaSuccess);
  }

  KvCacheView view() const {
    return {.heads = heads, .head_dim = dim, .padded_dim = padded, .dtype = dtype, .tiles = table_of.data()};
  }
  /// Bytes from the start of `tiles` to the one that is number `i` in the tables.
  size_t offset(size_t i) const { return (tables.size() - 1 - i) * tile_bytes; }
  size_t key_at(size_t sequence, int64_t position, int64_t head, int64_t i) const {
    return at(sequence, position, (head * padded + i) * kTile + position % kTile);
  }
  size_t value_at(size_t sequence, int64_t position, int64_t head, int64_t i) const {
    return at(sequence, position, ((heads + head) * kTile + position % kTile) * padded + i);
  }

  static constexpr int64_t kTile = kernels::KvCacheView::kTile;
  int64_t heads, dim;
  DType dtype;
  int64_t padded;
  size_t sequence_tiles, tile_bytes;
  DeviceArray<std::byte> tiles;
  DeviceArray<void*> tables, table_of;

 private:
  size_t at(size_t sequence, int64_t position, int64_t element) const {
    return offset(sequence * sequence_tiles + static_cast<size_t>(position / kTile)) +
           static_cast<size_t>(element) * element_bytes(dtype);
  }
};

/// What a cache of one sequence holds, on the host.
struct HostCache {
  const TestCache& of;
  std::vector<std::byte> tiles = of.tiles.values();

  float key(int64_t position, int64_t head, int64_t i) const {
    return read_element(tiles.data() + of.key_at(0, position, head, i), of.dtype);
  }
  float value(int64_t position, int64_t head, int64_t i) const {
    return read_element(tiles.data() + of.value_at(0, position, head, i), of.dtype);
  }
  /// What another one holds at a position takes the place of what this one does.
  void take(const HostCache& other, int64_t position) {
    for (int64_t head = 0; head < of.heads; ++head) {
      for (int64_t i = 0; i < of.dim; ++i) {
        for (const size_t at : {of.key_at(0, position, head, i), of.value_at(0, position, head, i)}) {
          std::memcpy(tiles.data() + at, other.tiles.data() + at, element_bytes(of.dtype));
        }
      }
    }
  }
};

}  // namespace hxq::cuda::testing
