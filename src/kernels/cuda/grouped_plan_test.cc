// How the kernels of grouped matrices divide their work, on any machine: every index is taken once and is the one that
// the format's page says, and sums and scales find each other.

#include "kernels/cuda/grouped_plan.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>
#include <vector>

namespace hxq::cuda {
namespace {

/// Bit by bit, as the format's page says.
uint32_t index_of_column(const std::vector<uint8_t>& row, int bits, int64_t col) {
  uint32_t index = 0;
  for (int64_t i = 0; i < bits; ++i) {
    const int64_t bit = col * bits + i;
    index |= static_cast<uint32_t>(row[static_cast<size_t>(bit / 8)] >> bit % 8 & 1) << i;
  }
  return index;
}

std::vector<uint8_t> some_bytes(int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  uint32_t state = 12345;
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

/// Copies a tile as the lanes do, and reads the levels' indices from it as they do.
template <int kBits>
void expect_tile_of_indices() {
  using Tile = GroupedTile<kBits>;
  std::vector<std::vector<uint8_t>> rows;
  for (int r = 0; r < Tile::kRows; ++r) rows.push_back(some_bytes(Tile::kRowBytes + r));
  std::vector<uint8_t> slot(Tile::kBytes, 0xff);
  std::vector<int> times(Tile::kBytes);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < Tile::kCopies; ++i) {
      const int row = Tile::copy_row(lane) + i * Tile::kCopyRows, byte = Tile::copy_byte(lane);
      ASSERT_LT(row, Tile::kRows);
      for (int k = 0; k < 16 && byte < Tile::kRowBytes; ++k) {
        slot[static_cast<size_t>(row * Tile::kPitch + byte + k)] =
            rows[static_cast<size_t>(row)][static_cast<size_t>(byte + k)];
        ++times[static_cast<size_t>(row * Tile::kPitch + byte + k)];
      }
    }
  }
  for (int r = 0; r < Tile::kRows; ++r) {
    for (int k = 0; k < Tile::kPitch; ++k)
      EXPECT_EQ(times[static_cast<size_t>(r * Tile::kPitch + k)], k < Tile::kRowBytes ? 1 : 0);
  }
  const auto word_at = [&](int at) {
    EXPECT_EQ(at % 4, 0);
    uint32_t word = 0;
    for (int k = 3; k >= 0; --k) word = word << 8 | slot[static_cast<size_t>(at + k)];
    return uint64_t{word};
  };
  std::set<std::pair<int, int>> taken;  // rows and columns
  for (int lane = 0; lane < 32; ++lane) {
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      for (int half = 0; half < 2; ++half) {
        const int row = Tile::lane_row(lane) + 8 * half, from = row * Tile::kPitch + Tile::lane_byte(chunk, lane);
        uint64_t words[3] = {};
        for (int i = 0; i < Tile::kWords; ++i) words[i] = word_at(from + 4 * i);
        const int shift = Tile::lane_shift(lane);
        const auto low = static_cast<uint32_t>((words[1] << 32 | words[0]) >> shift);
        const auto high = static_cast<uint32_t>((words[2] << 32 | words[1]) >> shift);
        for (int field = 0; field < Tile::kLaneCols / Tile::kFieldCols; ++field) {
          const uint32_t offset = Tile::entry_offset(low, high, field);
          ASSERT_LT(offset, Tile::kTableBytes);
          ASSERT_EQ(offset % Tile::kEntryBytes, 0u);
          for (int which = 0; which < Tile::kFieldCols; ++which) {
            const int col = chunk * Tile::kChunkCols + Tile::lane_col(lane) + field * Tile::kFieldCols + which;
            EXPECT_TRUE(taken.emplace(row, col).second);
            EXPECT_EQ(static_cast<uint32_t>(Tile::index_of(static_cast<int>(offset / Tile::kEntryBytes), which)),
                      index_of_column(rows[static_cast<size_t>(row)], kBits, col))
                << kBits << " bits, column " << col;
          }
        }
      }
    }
  }
  EXPECT_EQ(taken.size(), static_cast<size_t>(Tile::kRows * Tile::kCols));
  for (int i = 0; i < 8; ++i) {
    uint64_t bytes = 0;
    for (int k = kBits - 1; k >= 0; --k) bytes = bytes << 8 | rows[0][static_cast<size_t>(k)];
    EXPECT_EQ(grouped_index(bytes, kBits, i), index_of_column(rows[0], kBits, i));
  }
}

TEST(CudaGroupedPlan, TilesHaveEveryIndexOnce) {
  expect_tile_of_indices<3>();
  expect_tile_of_indices<4>();
  expect_tile_of_indices<5>();
  expect_tile_of_indices<6>();
  expect_tile_of_indices<7>();
  expect_tile_of_indices<8>();
}

TEST(CudaGroupedPlan, TilesAreSharedAmongWarpsAndKeepTheirSumsApart) {
  for (const int rows : {1, 15, 16, 17, 62, 243, 1152}) {
    for (const int cols : {128, 768, 2048, 5632, 16384}) {
      const GroupedShare share(rows, cols);
      std::set<int> places;
      int next = 0;
      for (int warp = 0; warp < GroupedShare::kWarps; ++warp) {
        EXPECT_EQ(share.begin(warp), next);
        next = share.begin(warp + 1);
        std::set<int> row_tiles;
        for (int tile = share.begin(warp); tile < next; ++tile) row_tiles.insert(tile / share.steps);
        for (const int tile : row_tiles) {
          EXPECT_TRUE(places.insert(GroupedShare::place(tile, warp)).second);
          EXPECT_LT(GroupedShare::place(tile, warp), GroupedShare::places(rows));
        }
      }
      EXPECT_EQ(next, (rows + 15) / 16 * (cols / 128));
    }
  }
}

TEST(CudaGroupedPlan, ChunksFindTheirScales) {
  for (int shift = 0; shift <= 5; ++shift) {
    for (int step = 0; step < 40; ++step) {
      for (int chunk = 0; chunk < 4; ++chunk) {
        EXPECT_EQ(4 * scale_word_of(step, shift) + scale_byte_of(step, chunk, shift),
                  (step * 128 + chunk * 32) / (32 << shift));
      }
    }
  }
}

}  // namespace
}  // namespace hxq::cuda
