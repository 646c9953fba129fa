// How the kernels divide their work, on any machine: every byte is taken once, and what is packed can be found again.

#include <gtest/gtest.h>

#include <set>
#include <tuple>
#include <vector>

#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/packed_x.h"
#include "kernels/cuda/tile_gemm_plan.h"

namespace hxq::cuda {
namespace {

TEST(CudaPlans, GemvTakesEveryUnitOnce) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                                   {80, 1536},
                                   {1536, 48},
                                   {3072, 768},
                                   {33, 50},
                                   {1000, 4096},
                                   {259, 8192},
                                   {40, 24577},
                                   {3, 32768}}) {
    for (const int64_t blocks : {1, 7, 132}) {
      const GemvPlan plan = plan_gemv(rows, cols, blocks);
      const int64_t units = (cols + GemvPlan::kUnitCols - 1) / GemvPlan::kUnitCols;
      std::vector<int> taken(static_cast<size_t>(rows * units));
      for (int64_t b = 0; b < plan.blocks; ++b) {
        const BlockShare share(rows, plan.blocks);
        const int64_t begin = share.begin(static_cast<int>(b)), count = share.count(static_cast<int>(b));
        EXPECT_LE(count, plan.max_block_rows(rows));
        for (int thread = 0; thread < GemvPlan::kWarps * 32; ++thread) {
          for (int64_t row = plan.slot_of(thread); row < count; row += plan.row_slots()) {
            for (int i = 0; i < plan.units; ++i) {
              if (plan.unit_of(thread, i) < units)
                ++taken[static_cast<size_t>((begin + row) * units + plan.unit_of(thread, i))];
            }
          }
        }
      }
      for (const int times : taken) ASSERT_EQ(times, 1) << rows << "x" << cols << " on " << blocks;
    }
  }
}

TEST(CudaPlans, MatricesThatShareAKernelGetBlocksByTheirRows) {
  int64_t share[4];
  const auto shared = [&](std::vector<int64_t> rows, int64_t blocks) {
    share_blocks(rows, blocks, share);
    return std::vector<int64_t>(share, share + rows.size());
  };
  EXPECT_EQ(shared({4096}, 132), (std::vector<int64_t>{132}));
  EXPECT_EQ(shared({2048, 256, 256}, 132), (std::vector<int64_t>{105, 14, 13}));
  EXPECT_EQ(shared({1, 5000, 2}, 132), (std::vector<int64_t>{1, 130, 1}));
  EXPECT_EQ(shared({3, 2}, 132), (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(shared({100, 100, 100}, 2), (std::vector<int64_t>{1, 1, 1}));
}

TEST(CudaPlans, GemmTakesEveryChunkOnce) {
  const int clusters[GemmPlan::kMostSplits + 1] = {0, 132, 66, 42, 31, 0, 20, 17, 14};
  for (const auto& [rows, cols, tokens] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 2},
                                           {3072, 768, 16},
                                           {8192, 8192, 64},
                                           {50280, 768, 64},
                                           {513, 4097, 200},
                                           {80, 1536, 8}}) {
    for (const int parts : {1, 2}) {
      for (const bool any_shape : {true, false}) {
        const GemmPlan plan = plan_gemm(rows, cols, tokens, parts, any_shape, clusters);
        EXPECT_EQ(plan.row_groups * plan.k_groups, kGemmWarpgroups);
        EXPECT_GE(plan.token_tiles * plan.tile_tokens(), tokens);
        EXPECT_GE(plan.row_tiles * plan.tile_rows(), rows);
        EXPECT_LE(plan.clusters, clusters[plan.splits]);
        std::set<int64_t> chunks;
        for (int split = 0; split < plan.splits; ++split) {
          EXPECT_LT(plan.first_step(split), plan.first_step(split + 1));
          for (int step = plan.first_step(split); step < plan.first_step(split + 1); ++step) {
            for (int q = 0; q < plan.k_groups; ++q) {
              EXPECT_TRUE(chunks.insert(int64_t{step} * plan.k_groups + q).second);
            }
          }
        }
        EXPECT_EQ(static_cast<int64_t>(chunks.size()), plan.padded_chunks());
        EXPECT_GE(plan.padded_chunks() * kChunkCols, cols);
        EXPECT_LT((plan.padded_chunks() - plan.k_groups) * kChunkCols, cols);
      }
    }
  }
}

TEST(CudaPlans, MemoryForManyTokensIsEnoughForFewer) {
  const int clusters[GemmPlan::kMostSplits + 1] = {0, 132, 66, 42, 31, 25, 20, 17, 14};
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {3072, 768}, {8192, 8192}, {80, 1536}}) {
    for (const int parts : {1, 2}) {
      for (int64_t tokens = 1; tokens <= 300; ++tokens) {
        const GemmPlan plan = plan_gemm(rows, cols, tokens, parts, true, clusters);
        for (const int64_t most : {tokens, tokens + 1, int64_t{300}}) {
          EXPECT_LE(plan.token_tiles * plan.columns, most_columns(most, parts)) << tokens;
          EXPECT_LE(plan.padded_tokens(), most_columns(most, 1)) << tokens;
          EXPECT_LE(int64_t{plan.tile_rows()} * plan.tile_tokens(), most_tile_values(most)) << tokens;
        }
      }
    }
  }
}

TEST(CudaPlans, TilesCoverTheProductOnce) {
  for (const auto& [rows, cols, tokens] : {std::tuple<int64_t, int64_t, int64_t>{1, 16, 33},
                                           {3072, 768, 64},
                                           {8192, 8192, 128},
                                           {513, 4112, 300},
                                           {128, 64, 4096}}) {
    const TileGemmPlan plan = plan_tile_gemm(rows, cols, tokens, 132);
    EXPECT_LE(plan.blocks, 132);
    std::set<std::tuple<int64_t, int64_t, int>> taken;  // row tile, token tile, chunk
    for (int64_t unit = 0; unit < plan.units(); ++unit) {
      const int64_t tile = plan.tile_of(unit), row = plan.first_row(tile), token = plan.first_token(tile);
      EXPECT_LT(row, rows);
      EXPECT_LT(token, tokens);
      const int split = plan.split_of(unit);
      EXPECT_LT(plan.first_chunk(split), plan.first_chunk(split + 1));
      for (int chunk = plan.first_chunk(split); chunk < plan.first_chunk(split + 1); ++chunk) {
        EXPECT_TRUE(taken.emplace(row, token, chunk).second);
      }
    }
    const auto count = [](int64_t size, int64_t of) { return static_cast<size_t>((size + of - 1) / of); };
    EXPECT_EQ(taken.size(),
              count(rows, TileGemmPlan::kRows) * count(tokens, plan.columns) * count(cols, TileGemmPlan::kChunkCols));
  }
}

TEST(CudaPlans, PackedColumnsMatchTheBytesOfALane) {
  // Product j of depth 16 wants of lane t its columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; it gets bytes 4 j to 4 j + 3.
  for (int t = 0; t < 4; ++t) {
    for (int j = 0; j < 4; ++j) {
      const int wanted[4] = {2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9};
      for (int b = 0; b < 4; ++b) EXPECT_EQ(packed_place(16 * t + 4 * j + b), 16 * j + wanted[b]);
    }
  }
  std::set<int> offsets;
  for (int token = 0; token < 16; ++token) {
    for (int place = 0; place < kChunkCols; ++place) offsets.insert(packed_offset(token, place));
  }
  EXPECT_EQ(offsets.size(), 16u * kChunkCols);
  EXPECT_EQ(*offsets.rbegin(), 16 * kChunkCols - 1);
  for (int place = 0; place < kChunkCols; ++place) EXPECT_EQ(packed_place(packed_col(place)), place);
}

TEST(CudaPlans, IndicesOfEveryWidth) {
  const uint8_t packed[3] = {0xbc, 0x3a, 0x12};  // 0xabc, 0x123: docs/format.md
  EXPECT_EQ(index_at(packed, 12, 0), 0xabcu);
  EXPECT_EQ(index_at(packed, 12, 1), 0x123u);
  EXPECT_EQ(index_at(packed, 8, 2), 0x12u);
  EXPECT_EQ(index_at(packed, 16, 0), 0x3abcu);
  const float codebook[6] = {0, 1, 2, 3, 4, 5};
  const uint8_t indices[2] = {2, 0};
  EXPECT_EQ(codebook_level(indices, 8, codebook, 2, 1), 5.0f);
  EXPECT_EQ(codebook_level(indices, 8, codebook, 2, 2), 0.0f);
}

}  // namespace
}  // namespace hxq::cuda
