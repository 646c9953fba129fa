// How layers of Mamba are spread over clusters, on any machine.

#include "kernels/cuda/mamba_layers_plan.h"

#include <gtest/gtest.h>

#include <tuple>
#include <vector>

namespace hxq::cuda {
namespace {

using Plan = MambaLayersPlan;

struct Shape {
  int64_t hidden, inner, rank;
};
constexpr Shape kShapes[] = {{768, 1536, 48}, {1024, 2048, 64}, {112, 208, 16}, {16, 32, 16}, {256, 512, 16}};

/// Plans that there are for these shapes.
std::vector<std::tuple<Plan, int64_t>> plans() {
  std::vector<std::tuple<Plan, int64_t>> all;
  for (const Shape& s : kShapes) {
    for (const int64_t sequences : {1, 9, 16, 33, 64}) {
      for (const int parts : {1, 2}) {
        const Plan plan = plan_mamba_layers(s.hidden, s.inner, s.rank, sequences, parts, 7);
        if (plan.clusters > 0) all.emplace_back(plan, sequences);
      }
    }
  }
  return all;
}

TEST(CudaMambaLayersPlan, FitsTheModelItIsFor) {
  for (const int room : {6, 7, 8}) {
    for (const int64_t sequences : {9, 16, 17, 33, 64}) {
      EXPECT_GT(plan_mamba_layers(768, 1536, 48, sequences, 1, room).clusters, 0) << room << ", " << sequences;
    }
    EXPECT_GT(plan_mamba_layers(768, 1536, 48, 8 * room, 2, room).clusters, 0);
    EXPECT_EQ(plan_mamba_layers(768, 1536, 48, 8 * room + 1, 2, room).clusters, 0) << "x in two parts";
    EXPECT_EQ(plan_mamba_layers(768, 1536, 48, 17 * room, 1, room).clusters, 0) << "too many";
  }
  EXPECT_EQ(plan_mamba_layers(768, 1536, 48, 16, 1, 0).clusters, 0) << "no clusters";
  EXPECT_EQ(plan_mamba_layers(760, 1536, 48, 16, 1, 7).clusters, 0) << "rows that are not aligned";
  EXPECT_EQ(plan_mamba_layers(2560, 5120, 160, 16, 1, 7).clusters, 0) << "large";
}

TEST(CudaMambaLayersPlan, EverySequenceIsInACluster) {
  for (const auto& [plan, sequences] : plans()) {
    EXPECT_LE(plan.clusters, 7);
    EXPECT_LE(plan.tokens, plan.token_tiles * Plan::kTileTokens);
    EXPECT_GE(int64_t{plan.clusters} * plan.tokens, sequences);
    EXPECT_LT(int64_t{plan.clusters - 1} * plan.tokens, sequences);
  }
}

/// Of each product, how often blocks, warps and lanes take each 16 columns of each row.
TEST(CudaMambaLayersPlan, TakesEveryWeightOnce) {
  for (const auto& [plan, sequences] : plans()) {
    for (int phase = 0; phase < Plan::kPhases; ++phase) {
      const Plan::Tiling& tiling = plan.tiling[phase];
      const int rows = plan.rows_of(phase), units = plan.cols_of(phase) / 16;
      const bool has_own_rows = phase == Plan::kIn || phase == Plan::kDt;
      std::vector<int> taken(static_cast<size_t>(rows) * static_cast<size_t>(units));
      for (int block = 0; block < Plan::kBlocks; ++block) {
        const int first_channel = std::min(block * plan.channels, plan.inner);
        const int own = std::min(plan.channels, plan.inner - first_channel);
        const int own_cols = has_own_rows ? plan.cols_of(phase) : own;
        for (int warp = 0; warp < Plan::kWarps; ++warp) {
          for (int i = 0; i < tiling.warp_tiles; ++i) {
            const int tile = tiling.first_tile_of(warp) + i;
            for (int unit = tiling.first_unit_of(warp); tile < tiling.tiles && unit < tiling.units;
                 unit += tiling.col_groups()) {
              for (int at = 0; at < Plan::kTileRows * 4; ++at) {
                int row = tile * Plan::kTileRows + at / 4;
                const int col = unit * Plan::kUnitCols + at % 4 * 16;
                int first_row = 0;
                if (has_own_rows) first_row = first_channel;
                if (phase == Plan::kIn && row >= plan.channels) row -= plan.channels, first_row += plan.inner;
                if (row >= (has_own_rows ? own : rows) || col >= own_cols) continue;
                const int in_matrix = has_own_rows ? col : first_channel + col;
                ++taken[static_cast<size_t>((first_row + row) * units + in_matrix / 16)];
              }
            }
          }
        }
      }
      for (const int times : taken) ASSERT_EQ(times, 1) << plan.hidden << " wide, phase " << phase;
    }
  }
}

TEST(CudaMambaLayersPlan, OwnersShareRowsAndGetWhatIsSent) {
  for (const auto& [plan, sequences] : plans()) {
    int64_t hidden = 0, x_rows = 0, channels = 0;
    for (int block = 0; block < Plan::kBlocks; ++block) {
      hidden += plan.own_hidden_of(block);
      x_rows += plan.count_of(Plan::kOwnOfX, block);
      channels += plan.count_of(Plan::kOfDt, block);
      EXPECT_LE(plan.own_hidden * plan.even_tokens(), 2 * Plan::kThreads) << "a thread has a pair of tokens";
    }
    EXPECT_EQ(hidden, plan.hidden);
    EXPECT_EQ(x_rows, plan.x_rows());
    EXPECT_EQ(channels, plan.inner);
    for (int row = 0; row < plan.hidden; ++row) ASSERT_EQ(plan.hidden_owner(row), row / plan.own_hidden);
    for (int row = 0; row < plan.x_rows(); ++row) ASSERT_EQ(plan.row_owner(row), row / plan.own_rows);
    for (int c = 0; c < plan.inner; ++c) ASSERT_EQ(plan.channel_owner(c), c / plan.channels);
    for (int at = 0; at < 4096; ++at) ASSERT_EQ(plan.even_row(at), at / plan.even_tokens());
    for (int at = 0; at < plan.tokens * plan.own_hidden / 4; ++at) {
      ASSERT_EQ(plan.quad_token(at), at / (plan.own_hidden / 4));
    }
    uint32_t received[Plan::kExchanges] = {};
    for (int block = 0; block < Plan::kBlocks; ++block) {
      for (int i = 0; i < Plan::kExchanges; ++i) received[i] += plan.expected_bytes(i, block, plan.tokens);
    }
    const auto blocks = static_cast<uint32_t>(Plan::kBlocks), tokens = static_cast<uint32_t>(plan.tokens);
    const auto even = static_cast<uint32_t>(plan.even_tokens());
    const auto from = blocks * static_cast<uint32_t>(plan.tiling[Plan::kX].col_groups());
    EXPECT_EQ(received[Plan::kXParts], 4 * from * even * static_cast<uint32_t>(plan.x_rows()));
    EXPECT_EQ(received[Plan::kOutParts], 4 * blocks * even * static_cast<uint32_t>(plan.hidden));
    EXPECT_EQ(received[Plan::kHidden], 4 * blocks * tokens * static_cast<uint32_t>(plan.hidden));
    EXPECT_EQ(received[Plan::kDbc],
              4 * blocks * tokens * static_cast<uint32_t>(plan.rank * plan.parts + 2 * Plan::kStates));
  }
}

TEST(CudaMambaLayersPlan, OutliersOfRowsHavePlacesOfTheirOwn) {
  for (const auto& [plan, sequences] : plans()) {
    std::vector<int> ranges;
    for (int rows = 0; rows < Plan::kRowRanges; ++rows) {
      const int most = rows == Plan::kOwnOfX     ? plan.own_rows
                       : rows == Plan::kOwnOfOut ? plan.own_hidden
                                                 : plan.channels;
      ranges.push_back(plan.begins_before(rows) + most + 1);
      EXPECT_EQ(plan.begins_before(rows), rows > 0 ? ranges[static_cast<size_t>(rows) - 1] : 0);
      for (int block = 0; block < Plan::kBlocks; ++block) {
        EXPECT_LE(plan.count_of(rows, block), most);
        if (plan.count_of(rows, block) > 0) {
          EXPECT_LE(plan.first_of(rows, block) + plan.count_of(rows, block), plan.rows_of(Plan::phase_of(rows)));
        }
      }
    }
    EXPECT_LE(plan.begins_at + 4 * static_cast<uint32_t>(ranges.back()), Plan::kMostBytes);
    EXPECT_LE(plan.bytes, Plan::kMostBytes);
  }
}

}  // namespace
}  // namespace hxq::cuda
