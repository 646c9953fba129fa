// How the kernels divide their work, on any machine: every byte is taken once, and what is packed can be found again.

#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/batch_gemv_plan.h"
#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/packed_x.h"
#include "kernels/cuda/skinny_gemm_plan.h"
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
        for (int thread = 0; thread < GemvPlan::kThreads; ++thread) {
          if (plan.slot_of(thread) >= plan.row_slots()) continue;
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

/// Of an H100; of a GPU that has no clusters.
constexpr int kClusters[9] = {0, 132, 66, 42, 32, 24, 20, 17, 16}, kNoClusters[9] = {0, 132};

TEST(CudaPlans, SkinnyGemmTakesEveryItemOnce) {
  using Plan = SkinnyPlan;
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 16}, {80, 1536}, {3072, 768}, {34000, 208}, {1000, 8192}}) {
    for (const int64_t tokens : {2, 9, 64}) {
      for (const int parts : {1, 2}) {
        const Plan plan = plan_skinny_gemm(rows, cols, tokens, parts, kClusters);
        ASSERT_EQ(plan.clusters > 0, fits_skinny_gemm(cols, tokens, parts, kClusters));
        if (plan.clusters == 0) continue;
        EXPECT_GE(int64_t{plan.token_groups} * plan.tokens(), tokens);
        EXPECT_LE(plan.units * plan.token_tiles * parts, Plan::kMostUnits);
        EXPECT_LE(plan.cluster * plan.own_rows * plan.tokens(), Plan::kMostOwnSums);
        EXPECT_LE(Plan::kWarps * plan.round_tiles * plan.tokens() * Plan::kSumPitch, Plan::kMostTileSums);
        EXPECT_LE(plan.clusters * plan.cluster * plan.token_groups, 132);
        const BlockShare share(rows, plan.clusters);
        std::vector<int> taken(static_cast<size_t>(rows * (cols / 16)));
        for (int64_t c = 0; c < plan.clusters; ++c) {
          const int count = share.count(static_cast<int>(c));
          for (int block = 0; block < plan.cluster; ++block) {
            for (int thread = 0; thread < Plan::kThreads; ++thread) {
              const int warp = thread / 32, lane = thread % 32;
              for (int tile = plan.row_group_of(warp); tile * Plan::kTileRows < count; tile += plan.row_groups) {
                for (int unit = plan.col_group_of(warp); unit < plan.units; unit += plan.col_groups()) {
                  const int64_t col = (block * plan.units + unit) * Plan::kUnitCols + Plan::lane_col(lane);
                  for (const int below : {0, 8}) {
                    const int row = tile * Plan::kTileRows + Plan::lane_row(lane) + below;
                    if (row >= count || col >= cols) continue;
                    ++taken[static_cast<size_t>((share.begin(static_cast<int>(c)) + row) * (cols / 16) + col / 16)];
                  }
                }
              }
            }
          }
        }
        for (const int times : taken) ASSERT_EQ(times, 1) << rows << "x" << cols << " with " << tokens;
        for (int row = 0; row < plan.pass_rows(); ++row) ASSERT_EQ(plan.owner_of(row), row / plan.own_rows);
      }
    }
  }
}

TEST(CudaPlans, SkinnyGemmNeedsClustersWhereABlockCannotHoldX) {
  EXPECT_EQ(plan_skinny_gemm(1000, 2048, 8, 1, kNoClusters).cluster, 1);
  EXPECT_EQ(plan_skinny_gemm(1000, 2064, 8, 1, kNoClusters).clusters, 0);
  EXPECT_GT(plan_skinny_gemm(1000, 2064, 8, 1, kClusters).cluster, 1);
  EXPECT_EQ(plan_skinny_gemm(1000, 16400, 8, 1, kClusters).clusters, 0);
}

TEST(CudaPlans, BatchGemvTakesEveryItemOnce) {
  using Plan = BatchGemvPlan;
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 144}, {80, 1536}, {3072, 768}, {34000, 208}, {900, 4096}, {1000, 8208}}) {
    for (const int parts : {1, 2}) {
      const Plan plan = plan_batch_gemv(rows, cols, parts, kClusters);
      ASSERT_EQ(plan.clusters > 0, fits_batch_gemv(cols, parts, kClusters));
      if (plan.clusters == 0) continue;
      EXPECT_LE(plan.clusters * plan.cluster(), 132);
      EXPECT_LE(plan.pass_rows(), Plan::kPassRows);
      const BlockShare share(rows, plan.clusters);
      std::vector<int> taken(static_cast<size_t>(rows * (cols / 16)));
      for (int c = 0; c < plan.clusters; ++c) {
        for (int block = 0; block < plan.cluster(); ++block) {
          for (int thread = 0; thread < Plan::kThreads; ++thread) {
            const int warp = thread / 32, lane = thread % 32;
            for (int round = 0; round * plan.round_rows() < share.count(c); ++round) {
              for (int u = 0; u < Plan::warp_units(parts); ++u) {
                const int unit = plan.col_group_of(warp) + u * plan.col_groups();
                if (unit >= plan.units) continue;
                const int64_t col = (block * plan.units + unit) * Plan::kUnitCols + Plan::lane_col(lane);
                for (const int below : {0, 8}) {
                  const int row = round * plan.round_rows() + plan.row_group_of(warp) * Plan::kTileRows +
                                  Plan::lane_row(lane) + below;
                  if (row >= share.count(c) || col >= cols) continue;
                  ++taken[static_cast<size_t>((share.begin(c) + row) * (cols / 16) + col / 16)];
                }
              }
            }
          }
        }
      }
      for (const int times : taken) ASSERT_EQ(times, 1) << rows << "x" << cols << " in " << parts;
      EXPECT_EQ(plan.own_rows * plan.cluster(), plan.pass_rows());
      for (int row = 0; row < plan.pass_rows(); ++row) ASSERT_EQ(plan.owner_of(row), row / plan.own_rows);
    }
  }
}

TEST(CudaPlans, BatchGemvHasShapesWithClustersAndFurtherPasses) {
  const BatchGemvPlan plan = plan_batch_gemv(20000, 2064, 1, kClusters);  // as its tests on a GPU take
  EXPECT_EQ(plan.cluster(), 2);
  EXPECT_GT(BlockShare(20000, plan.clusters).rows, plan.pass_rows());
}

TEST(CudaPlans, BatchGemvNeedsClustersWhereABlockCannotHoldX) {
  EXPECT_EQ(plan_batch_gemv(1000, 2048, 1, kNoClusters).cluster(), 1);
  EXPECT_EQ(plan_batch_gemv(1000, 2064, 1, kNoClusters).clusters, 0);
  EXPECT_EQ(plan_batch_gemv(1000, 1040, 2, kNoClusters).clusters, 0);
  EXPECT_EQ(plan_batch_gemv(1000, 1040, 2, kClusters).cluster(), 2);
  EXPECT_EQ(plan_batch_gemv(1000, 16400, 1, kClusters).clusters, 0);
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
        const GemmPlan plan = plan_gemm({&rows, 1}, cols, tokens, parts, any_shape, clusters);
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
  const int many[GemmPlan::kMostSplits + 1] = {0, 132, 66, 42, 31, 25, 20, 17, 14},
                                         few[GemmPlan::kMostSplits + 1] = {0, 14, 7};
  const std::vector<int64_t> cases[] = {
      {1}, {3072}, {8192}, {80}, {2048, 256, 256}, {5632, 5632}, {1, 50000, 1, 1, 1, 1}};
  for (const std::vector<int64_t>& rows : cases) {
    for (const int* clusters : {many, few}) {
      for (const int parts : {1, 2}) {
        for (const bool any_shape : {true, false}) {
          for (int64_t tokens = 1; tokens <= 300; ++tokens) {
            const GemmPlan plan = plan_gemm(rows, 768, tokens, parts, any_shape, clusters);
            for (const int64_t most : {tokens, tokens + 1, int64_t{300}}) {
              EXPECT_LE(plan.token_tiles * plan.columns, most_columns(most, parts)) << tokens;
              EXPECT_LE(plan.padded_tokens(), most_columns(most, 1)) << tokens;
              EXPECT_LE(int64_t{plan.tile_rows()} * plan.tile_tokens(), most_tile_values(most)) << tokens;
            }
            EXPECT_LE(plan.padded_chunks(), (768 + kChunkCols - 1) / kChunkCols + 3);
            // Clusters that are dealt out to the matrices are no more than have room, or one for each.
            std::vector<int64_t> tiles, share(rows.size());
            for (const int64_t count : rows) tiles.push_back(plan.row_tiles_of(count) * plan.token_tiles);
            share_blocks(tiles, plan.clusters, share.data());
            const int64_t used = std::accumulate(share.begin(), share.end(), int64_t{0});
            EXPECT_LE(used, std::max<int64_t>(clusters[plan.splits], static_cast<int64_t>(rows.size())));
          }
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
    for (const int pairs : {0, 66}) {
      const TileGemmPlan plan = plan_tile_gemm(rows, cols, tokens, 132, pairs);
      EXPECT_LE(plan.clusters * plan.share, plan.blocks_of_cluster() == 2 ? 2 * pairs : 132);
      EXPECT_TRUE(!plan.joins || plan.splits == 2);
      EXPECT_TRUE(plan.splits <= 1 || plan.clusters == plan.units());
      EXPECT_LE(int64_t{plan.token_tiles} * plan.columns, most_padded_tokens(tokens));
      std::set<std::tuple<int, int, int>> taken;  // row tile, token tile, chunk
      for (int unit = 0; unit < plan.units(); ++unit) {
        const int split = plan.split_of(unit);
        EXPECT_LT(plan.first_chunk(split), plan.first_chunk(split + 1));
        EXPECT_LT(int64_t{plan.token_tile_of(unit)} * plan.columns, tokens);
        for (int slot = 0; slot < plan.share; ++slot) {
          EXPECT_LT(plan.row_tile_of(unit, slot), plan.row_groups() * plan.share);
          for (int chunk = plan.first_chunk(split); chunk < plan.first_chunk(split + 1); ++chunk) {
            EXPECT_TRUE(taken.emplace(plan.row_tile_of(unit, slot), plan.token_tile_of(unit), chunk).second);
          }
        }
      }
      const auto count = [](int64_t size, int64_t of) { return static_cast<size_t>((size + of - 1) / of); };
      const size_t row_tiles =
          count(static_cast<int64_t>(count(rows, TileGemmPlan::kRows)), plan.share) * static_cast<size_t>(plan.share);
      EXPECT_EQ(taken.size(), row_tiles * count(tokens, plan.columns) * count(cols, TileGemmPlan::kChunkCols));
      EXPECT_EQ(plan.first_outlier_row(0), 0);
      EXPECT_EQ(plan.first_outlier_row(plan.splits), TileGemmPlan::kRows);
    }
  }
}

TEST(CudaPlans, TilesTakePromptsWhereTheyFillTheGpu) {
  const auto beats = [](int64_t rows, int64_t cols, int64_t tokens) {
    return beats_panels(plan_tile_gemm(rows, cols, tokens, 132, 66), rows, cols, tokens);
  };
  EXPECT_TRUE(beats(8192, 8192, 512));
  EXPECT_FALSE(beats(8192, 8192, 1024));
  EXPECT_FALSE(beats(11008, 4096, 512));
  EXPECT_FALSE(beats(4096, 4096, 512));
  EXPECT_FALSE(beats(768, 768, 2048));
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

TEST(CudaPlans, TensorCoresAttendWhereQueriesAreMany) {
  const auto takes = [](int32_t rows, int64_t query_heads, int64_t heads, int64_t dim, DType dtype) {
    return is_attention_prefill({.batch = {.count = 1, .max_rows = rows, .total_rows = rows},
                                 .q = {},
                                 .y = {},
                                 .query_heads = query_heads,
                                 .cache = {.heads = heads, .head_dim = dim, .padded_dim = dim, .dtype = dtype}});
  };
  EXPECT_FALSE(takes(1, 32, 4, 64, DType::f32));
  EXPECT_FALSE(takes(63, 32, 32, 128, DType::f32));
  EXPECT_TRUE(takes(64, 32, 32, 128, DType::f32));
  EXPECT_FALSE(takes(7, 32, 4, 64, DType::f16));
  EXPECT_TRUE(takes(8, 32, 4, 64, DType::f16));
  for (const int64_t dim : {64, 80, 96, 128, 256}) EXPECT_TRUE(takes(2048, 2, 2, dim, DType::f32)) << dim;
  for (const int64_t dim : {16, 32, 112, 192}) EXPECT_FALSE(takes(2048, 2, 2, dim, DType::f32)) << dim;
  EXPECT_FALSE(takes(2048, 2, 2, 64, DType::bf16));
}

TEST(CudaPlans, CachesAreRoundedWhereManyQueriesSeeThem) {
  const auto slots = [](int32_t rows, int32_t count, int64_t seen, int64_t window = 0, size_t slot_bytes = 1000) {
    return rounded_slots({.batch = {.count = count, .max_rows = rows, .total_rows = rows * count},
                          .q = {},
                          .y = {},
                          .query_heads = 8,
                          .window = window,
                          .seen_positions = seen,
                          .cache = {.heads = 2, .head_dim = 64, .padded_dim = 64}},
                         slot_bytes);
  };
  EXPECT_EQ(slots(128, 1, 0), 0);
  EXPECT_EQ(slots(128, 1, 128), 4);
  EXPECT_EQ(slots(2048, 1, 2048), 34);
  EXPECT_EQ(slots(128, 5, 1024), 26);
  EXPECT_EQ(slots(128, 5, 4096, 512), 10 + (640 + 5 * 512) / 64);
  EXPECT_EQ(slots(128, 1, int64_t{1} << 40), kMostRoundedSlots);
  EXPECT_EQ(slots(128, 1, int64_t{1} << 40, 0, kMostRoundedBytes / 10), 10);
}

TEST(CudaPlans, PositionsAreCutWhereBlocksAreFew) {
  const auto parts = [](int32_t rows, int32_t count, int64_t seen) {
    return warpgroup_parts({.batch = {.count = count, .max_rows = rows, .total_rows = rows * count},
                            .q = {},
                            .y = {},
                            .query_heads = 32,
                            .seen_positions = seen,
                            .cache = {.heads = 4, .head_dim = 64, .padded_dim = 64}},
                           192, 132);
  };
  EXPECT_EQ(parts(2048, 1, 1 << 20), 1);
  EXPECT_EQ(parts(64, 1, 0), 1);
  EXPECT_EQ(parts(64, 1, 1023), 1);
  EXPECT_EQ(parts(64, 1, 2048), 4);
  EXPECT_EQ(parts(64, 1, 1 << 20), 132 / (3 * 4));
  EXPECT_EQ(parts(64, 3, 1 << 20), 132 / (3 * 4 * 3));
  EXPECT_EQ(parts(8, 1, 1 << 20), kMostAttentionParts);
}

TEST(CudaPlans, StepsKnowWhichPositionsRowsSee) {
  for (const int64_t window : {0, 1, 5, 64}) {
    for (const auto& [first, last] : {std::pair<int, int>{0, 0}, {0, 7}, {3, 3}, {60, 75}}) {
      const SeenPositions seen(first, last, window);
      const auto sees = [w = window](int row, int at) { return at <= row && (w == 0 || at > row - w); };
      for (int at = 0; at < 80; ++at) {
        for (const int count : {1, 4, 16}) {
          bool any = false, all = true;
          for (int row = first; row <= last; ++row) {
            for (int i = at; i < at + count; ++i) any |= sees(row, i), all &= sees(row, i);
          }
          EXPECT_EQ(seen.touch(at, count), any) << first << " " << last << " " << window << " " << at << " " << count;
          EXPECT_EQ(seen.all_hold(at, count), all) << first << " " << last << " " << window << " " << at;
        }
        if (sees(first, at) || sees(last, at)) {
          EXPECT_TRUE(at >= seen.begin && at < seen.end) << first << " " << last << " " << window << " " << at;
        }
      }
    }
  }
  EXPECT_FALSE(SeenPositions().touch(0, 16));
}

TEST(CudaPlans, WarpsTakeEveryStripOnce) {
  for (const int key_strips : {2, 4, 8}) {
    for (const int value_strips : {8, 10, 12, 16, 32}) {
      std::multiset<int> keys, values;
      for (int warp = 0; warp < 4; ++warp) {
        const StripShare of_keys = StripShare::of_keys(warp, 4), of_values = StripShare::of_values(warp, 4, key_strips);
        for (int strip = of_keys.first; strip < key_strips; strip += of_keys.step) keys.insert(strip);
        for (int strip = of_values.first; strip < value_strips; strip += of_values.step) values.insert(strip);
      }
      EXPECT_EQ(keys.size(), static_cast<size_t>(key_strips));
      EXPECT_EQ(std::set<int>(keys.begin(), keys.end()).size(), keys.size());
      EXPECT_EQ(values.size(), static_cast<size_t>(value_strips));
      EXPECT_EQ(std::set<int>(values.begin(), values.end()).size(), values.size());
    }
  }
}

/// What ldmatrix and mma.m16n8k16 do with a warp's registers, by the PTX ISA's tables. Registers hold two numbers.
struct Warp {
  using Registers = std::array<std::array<std::array<int, 2>, 4>, 32>;  // [lane][register]

  template <size_t kCols>
  static Registers load(const std::array<std::array<int, kCols>, 16>& from, bool transposed) {
    Registers out{};
    for (int lane = 0; lane < 32; ++lane) {
      for (int block = 0; block < 4; ++block) {
        for (int i = 0; i < 2; ++i) {
          const int row = transposed ? lane % 4 * 2 + i : lane / 4, col = transposed ? lane / 4 : lane % 4 * 2 + i;
          const BlockPlace place(8 * block + row);  // the lane that says where the row lies
          out[static_cast<size_t>(lane)][static_cast<size_t>(block)][static_cast<size_t>(i)] =
              from[static_cast<size_t>(place.row)][static_cast<size_t>(place.col + col)];
        }
      }
    }
    return out;
  }

  /// d [16, 8], by lane, of a [16, 16] and the right operand in registers `first` and first + 1 of b.
  static std::array<std::array<int, 4>, 32> multiply(const Registers& a, const Registers& b, size_t first) {
    std::array<std::array<int, 4>, 32> d{};
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t i = 0; i < 4; ++i) {
        const size_t row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
        for (size_t k = 0; k < 16; ++k) {
          const size_t pair = k % 8 / 2;
          d[lane][i] += a[row % 8 * 4 + pair][row / 8 + 2 * (k / 8)][k % 2] * b[col * 4 + pair][first + k / 8][k % 2];
        }
      }
    }
    return d;
  }
};

TEST(CudaPlans, LanesHoldTheOperandsOfAttention) {
  std::array<std::array<int, 16>, 16> q, k, v;  // keys and values have a row for each term of a sum
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 16; ++j) {
      q[i][j] = static_cast<int>(i * 7 + j * 5) % 13 - 6;
      k[i][j] = static_cast<int>(i * 3 + j * 11) % 17 - 8;
      v[i][j] = static_cast<int>(i * 13 + j * 2) % 11 - 5;
    }
  }
  const Warp::Registers query = Warp::load(q, false), key = Warp::load(k, true), value = Warp::load(v, true);
  Warp::Registers weight{};
  for (size_t block = 0; block < 2; ++block) {
    const auto score = Warp::multiply(query, key, 2 * block);
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t half = 0; half < 2; ++half) {
        const int to = left_register(static_cast<int>(block), static_cast<int>(half));
        weight[lane][static_cast<size_t>(to)] = {score[lane][2 * half], score[lane][2 * half + 1]};
      }
    }
  }
  for (size_t block = 0; block < 2; ++block) {
    const auto sum = Warp::multiply(weight, value, 2 * block);
    for (size_t lane = 0; lane < 32; ++lane) {
      const ResultPlace place(static_cast<int>(lane));
      for (size_t i = 0; i < 4; ++i) {
        const auto row = static_cast<size_t>(place.row) + 8 * (i / 2);
        const auto col = 8 * block + static_cast<size_t>(place.col) + i % 2;
        int expected = 0;
        for (size_t s = 0; s < 16; ++s) {
          int dot = 0;
          for (size_t e = 0; e < 16; ++e) dot += q[row][e] * k[e][s];
          expected += dot * v[s][col];
        }
        EXPECT_EQ(sum[lane][i], expected) << row << " " << col;
      }
    }
  }
}

TEST(CudaPlans, PiecesOfEightRowsLieInDifferentBanks) {
  for (const int cols : {16, 32, 64, 80, 96, 128, 256}) {
    std::set<int> banks;
    for (int row = 0; row < 8; ++row) banks.insert(row * spread_row(cols) / 8 % 8);
    EXPECT_EQ(banks.size(), 8u) << cols;
    EXPECT_EQ(spread_row(cols) % 8, 0) << cols;
  }
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
