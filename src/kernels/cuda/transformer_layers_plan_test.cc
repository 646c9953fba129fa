// How a token goes through layers of a transformer on all of a GPU, on any machine.

#include "kernels/cuda/transformer_layers_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <vector>

namespace hxq::cuda {
namespace {

using Plan = TransformerPlan;

struct Shape {
  int64_t hidden, heads, kv_heads, head_dim, padded_dim, inner;
  DType cache = DType::f32;
};
constexpr Shape kTinyLlama = {2048, 32, 4, 64, 64, 5632};
constexpr Shape kShapes[] = {kTinyLlama,
                             {896, 14, 2, 64, 64, 4864},
                             {2048, 32, 8, 64, 64, 8192},
                             {1536, 12, 2, 128, 128, 8960, DType::f16},
                             {288, 6, 6, 48, 48, 768},
                             {64, 4, 2, 16, 16, 176, DType::f16},
                             {16, 1, 1, 16, 16, 16},
                             {1024, 4, 1, 256, 256, 10240}};

Plan plan_of(const Shape& s, int multiprocessors = 132) {
  const KvCacheView cache = {.heads = s.kv_heads, .head_dim = s.head_dim, .padded_dim = s.padded_dim, .dtype = s.cache};
  return plan_transformer_layers(s.hidden, s.heads, cache, s.inner, multiprocessors);
}

std::vector<Plan> plans() {
  std::vector<Plan> all;
  for (const Shape& shape : kShapes) {
    for (const int multiprocessors : {1, 7, 78, 114, 132, 144}) {
      if (const Plan plan = plan_of(shape, multiprocessors); plan.blocks > 0) all.push_back(plan);
    }
  }
  return all;
}

TEST(CudaTransformerPlan, FitsTheModelsItIsFor) {
  for (const Shape& shape : kShapes) EXPECT_GT(plan_of(shape).blocks, 0) << shape.hidden;
  EXPECT_EQ(plan_of(kTinyLlama).blocks, 132);
  EXPECT_EQ(plan_of(kTinyLlama).most_splits, 4);
  const auto is_left = [](const auto& change) {
    Shape shape = kTinyLlama;
    change(shape);
    return plan_of(shape).blocks == 0;
  };
  EXPECT_TRUE(is_left([](Shape& s) { s.hidden = 4096; })) << "wide";
  EXPECT_TRUE(is_left([](Shape& s) { s.heads = 64; })) << "more elements of queries";
  EXPECT_TRUE(is_left([](Shape& s) { s.inner = 10256; }));
  EXPECT_TRUE(is_left([](Shape& s) { s.inner = 5640; })) << "rows that are not aligned";
  EXPECT_TRUE(is_left([](Shape& s) { s.hidden = 2040; })) << "rows that are not aligned";
  EXPECT_TRUE(is_left([](Shape& s) { s.kv_heads = 5; })) << "no whole groups of heads";
  EXPECT_TRUE(is_left([](Shape& s) { s.head_dim = 62; }));
  EXPECT_TRUE(is_left([](Shape& s) { s.cache = DType::bf16; }));
  EXPECT_EQ(plan_of(kTinyLlama, 8).blocks, 0) << "too few multiprocessors";
}

/// Every row of every matrix is one block's, and a stage's rows of a block have a place each.
TEST(CudaTransformerPlan, BlocksShareAllRows) {
  for (const Plan& plan : plans()) {
    const int sizes[] = {plan.queries(), plan.keys(), plan.keys(), plan.hidden, plan.inner, plan.inner, plan.hidden};
    for (int matrix = 0; matrix < kTransformerProducts; ++matrix) {
      int next = 0;
      for (int block = 0; block < plan.blocks; ++block) {
        const TransformerRows rows = plan.rows(matrix, block);
        if (rows.count == 0) continue;
        EXPECT_EQ(rows.first, next);
        next += rows.count;
      }
      EXPECT_EQ(next, sizes[matrix]) << matrix;
    }
    for (int block = 0; block < plan.blocks; ++block) {
      for (int stage = 0; stage < Plan::kStages; ++stage) {
        int next = 0;
        for (int i = 0; i < Plan::matrices(stage); ++i) {
          const TransformerRows rows = plan.rows(Plan::first_matrix(stage) + i, block);
          EXPECT_EQ(Plan::stage_of(Plan::first_matrix(stage) + i), stage);
          if (rows.count == 0) continue;
          EXPECT_EQ(rows.at, next);
          next += rows.count;
        }
        EXPECT_GT(next, 0) << "a block without rows does not know of the others";
        EXPECT_LE(next, plan.most_rows);
      }
      EXPECT_LE(plan.rows(kOutput, block).count, kMostHiddenRows);
    }
  }
}

/// As a block brings and reads chunks of some layers: those that are in the ring do not overlap, and what is looked up
/// of rows that are not there lies in shared memory, too.
TEST(CudaTransformerPlan, ChunksInTheRingDoNotOverlap) {
  struct Chunk {
    uint32_t begin, end;
  };
  for (const Plan& plan : plans()) {
    const uint32_t all = plan.low_bytes + plan.high_bytes;
    EXPECT_LE(plan.low_at + plan.low_bytes, TransformerMemory::kTablesAt);
    EXPECT_GE(plan.low_at, sizeof(TransformerMemory) + sizeof(float) * (2 * Plan::kSumPitch + 2) * plan.most_rows);
    EXPECT_LE(plan.high_at + plan.high_bytes + 4 * std::max({plan.hidden, plan.queries(), plan.inner}),
              TransformerMemory::kBytes);
    TransformerRing ring;
    std::deque<Chunk> there;
    for (int layer = 0; layer < 4; ++layer) {
      for (int matrix = 0; matrix < kTransformerProducts; ++matrix) {
        const int stage = Plan::stage_of(matrix), rows = plan.rows(matrix, plan.blocks - 1).count;
        for (int first = 0; first < rows; first += plan.rows_at_once_of(stage)) {
          const int count = std::min(plan.rows_at_once_of(stage), rows - first);
          const auto bytes = static_cast<uint32_t>(count * plan.cols(stage));
          const uint32_t before = ring.at, begin = ring.take(plan, bytes);
          ASSERT_LE(begin + bytes, all);
          EXPECT_TRUE(begin >= plan.low_bytes || begin + bytes <= plan.low_bytes) << "in both pieces";
          EXPECT_EQ(begin % 128, 0u);
          const auto looked_up = static_cast<uint32_t>(plan.rows_at_once_of(stage) * plan.cols(stage));
          const uint32_t place = begin < plan.low_bytes ? plan.low_at + begin : plan.high_at + begin - plan.low_bytes;
          EXPECT_LE(place + looked_up, TransformerMemory::kBytes);
          // The oldest go until what is new, and what was left out before it, has room.
          const uint32_t taken = (begin >= before ? 0 : all) + ring.at - before;
          uint32_t in_use = 0;
          for (size_t i = 0; i < there.size(); ++i) {
            const uint32_t next = i + 1 < there.size() ? there[i + 1].begin : before;
            in_use += next >= there[i].begin ? next - there[i].begin : next + all - there[i].begin;
          }
          while (!there.empty() && in_use + taken > all) {
            const uint32_t next = there.size() > 1 ? there[1].begin : before;
            in_use -= next >= there[0].begin ? next - there[0].begin : next + all - there[0].begin;
            there.pop_front();
          }
          for (const Chunk& chunk : there) {
            EXPECT_TRUE(begin + bytes <= chunk.begin || begin >= chunk.end) << "overlaps";
          }
          there.push_back({begin, ring.at});
        }
      }
    }
  }
}

TEST(CudaTransformerPlan, PlacesOfWordsDoNotOverlap) {
  for (const Plan& plan : plans()) {
    EXPECT_GE(plan.qkv_at, plan.hidden);
    EXPECT_GE(plan.attended_at, plan.qkv_at + plan.queries() + 2 * plan.keys());
    EXPECT_GE(plan.weights_at, plan.attended_at + plan.most_splits * plan.queries());
    EXPECT_GE(plan.middle_at, plan.weights_at + 2 * plan.most_splits * plan.heads);
    EXPECT_GE(plan.gated_at, plan.middle_at + plan.hidden);
    EXPECT_LE((plan.gated_at + plan.inner + 2) * sizeof(uint64_t), kTransformerExchangeBytes);
    for (const int at : {plan.qkv_at, plan.attended_at, plan.weights_at, plan.middle_at, plan.gated_at}) {
      EXPECT_EQ(at % 2, 0) << "pairs are read at once";
    }
  }
}

TEST(CudaTransformerPlan, PartsOfPositionsAreFew) {
  const Plan plan = plan_of(kTinyLlama);
  EXPECT_EQ(plan.splits(2), 1);
  EXPECT_EQ(plan.splits(200), 4);
  for (int tiles = 1; tiles <= 200; ++tiles) {
    EXPECT_GE(plan.splits(tiles), 1);
    EXPECT_LE(plan.splits(tiles), std::min(tiles, plan.most_splits)) << "each has a tile at least";
  }
}

}  // namespace
}  // namespace hxq::cuda
