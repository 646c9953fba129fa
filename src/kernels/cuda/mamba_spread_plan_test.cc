// How layers of Mamba for very few sequences are spread over a GPU, on any machine.

#include "kernels/cuda/mamba_spread_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

namespace hxq::cuda {
namespace {

using Plan = MambaSpreadPlan;

struct Shape {
  int64_t hidden, inner, rank;
};
constexpr Shape kShapes[] = {{768, 1536, 48}, {1024, 2048, 64}, {112, 208, 16},
                             {144, 304, 32},  {16, 32, 16},     {256, 512, 16}};

/// Plans that there are for these shapes on GPUs with room for more and fewer clusters.
std::vector<Plan> plans() {
  std::vector<Plan> all;
  for (const Shape& s : kShapes) {
    for (const int room : {1, 5, 6, 7, 8, 9}) {
      for (const int64_t sequences : {1, 2}) {
        const Plan plan = plan_mamba_spread(s.hidden, s.inner, s.rank, sequences, room);
        if (plan.clusters > 0) all.push_back(plan);
      }
    }
  }
  return all;
}

TEST(CudaMambaSpreadPlan, FitsTheModelsItIsFor) {
  for (const int room : {7, 8}) {
    for (const int64_t sequences : {1, 2}) {
      const Plan plan = plan_mamba_spread(768, 1536, 48, sequences, room);
      EXPECT_EQ(plan.clusters, room);
      EXPECT_FALSE(plan.is_wide);
    }
    EXPECT_TRUE(plan_mamba_spread(1024, 2048, 64, 1, room).is_wide);
    EXPECT_EQ(plan_mamba_spread(1024, 2048, 64, 2, room).clusters, 0) << "wide, and two sequences";
  }
  EXPECT_EQ(plan_mamba_spread(768, 1536, 48, 3, 7).clusters, 0) << "many sequences";
  EXPECT_EQ(plan_mamba_spread(768, 1536, 48, 1, 0).clusters, 0) << "no clusters";
  EXPECT_EQ(plan_mamba_spread(768, 1536, 48, 1, 1).clusters, 0) << "too few multiprocessors";
  EXPECT_EQ(plan_mamba_spread(760, 1536, 48, 1, 7).clusters, 0) << "rows that are not aligned";
  EXPECT_EQ(plan_mamba_spread(1536, 3072, 96, 1, 7).clusters, 0) << "large";
}

/// A range has no more rows than a kernel has registers for.
TEST(CudaMambaSpreadPlan, RangesFitTheirKernel) {
  for (const Plan& plan : plans()) {
    const Plan::Widths& widths = plan.is_wide ? Plan::kWide : Plan::kNarrow;
    const std::array most = {widths.in_rows, widths.x_rows, widths.dt_rows, widths.out_rows};
    EXPECT_LE(plan.hidden, widths.hidden);
    EXPECT_LE(plan.bytes, Plan::kMostBytes);
    for (int product = 0; product < Plan::kProducts; ++product) {
      for (int block = 0; block < plan.blocks(); ++block) {
        const MambaSpreadRows rows = plan.rows(product, block / Plan::kBlocks, block % Plan::kBlocks);
        const int ranges = product == Plan::kDt ? 2 * Plan::kWarps : Plan::kWarps;
        EXPECT_EQ(rows.begin(0), 0);
        EXPECT_EQ(rows.begin(ranges), rows.count);
        EXPECT_LE(rows.count, Plan::kMostRows);
        for (int range = 0; range < ranges; ++range) {
          EXPECT_GE(rows.size(range), 0);
          EXPECT_LE(rows.size(range), most[static_cast<size_t>(product)]);
        }
      }
    }
  }
}

/// Rows of in_proj are those of one block of all; of dt_proj of one in each cluster; of out_proj of each block of one
/// cluster, and owned by one. Columns of x_proj and out_proj are those of one block in each cluster.
TEST(CudaMambaSpreadPlan, TakesEveryRowOnce) {
  for (const Plan& plan : plans()) {
    std::vector<int> in(static_cast<size_t>(2 * plan.inner)), channels(static_cast<size_t>(plan.inner));
    std::vector<int> out(static_cast<size_t>(plan.hidden));
    const auto take = [](std::vector<int>& rows, int first, int count) {
      ASSERT_GE(count, 0);
      ASSERT_LE(first + count, std::ssize(rows));
      for (int i = first; i < first + count; ++i) ++rows[static_cast<size_t>(i)];
    };
    for (int cluster = 0; cluster < plan.clusters; ++cluster) {
      const MambaSpreadRows of_out = plan.rows(Plan::kOut, cluster, 0);
      EXPECT_GT(of_out.count, 0) << "a cluster that says nothing of the hidden state";
      take(out, of_out.first, of_out.count);
      for (int block = 0; block < Plan::kBlocks; ++block) {
        const MambaSpreadRows of_in = plan.rows(Plan::kIn, cluster, block);
        EXPECT_GT(of_in.count, 0) << "a block that says nothing of in_proj";
        take(in, of_in.first, of_in.count);
        const MambaSpreadRows of_dt = plan.rows(Plan::kDt, cluster, block);
        EXPECT_EQ(of_dt.first, plan.first_channel(block));
        EXPECT_EQ(of_dt.count, plan.channels_of(block));
        if (cluster == 0) take(channels, of_dt.first, of_dt.count);
        const MambaSpreadRows of_x = plan.rows(Plan::kX, cluster, block);
        EXPECT_EQ(of_x.first, 0);
        EXPECT_EQ(of_x.count, plan.x_rows());
        EXPECT_EQ(plan.channels_of(block) % 16, 0) << "bytes are copied 16 at a time";
      }
    }
    for (const auto& rows : {in, channels, out}) {
      EXPECT_TRUE(std::all_of(rows.begin(), rows.end(), [](int times) { return times == 1; })) << plan.hidden;
    }
  }
}

TEST(CudaMambaSpreadPlan, MemoryOverlapsNothing) {
  for (const Plan& plan : plans()) {
    struct Region {
      uint32_t at;
      int64_t bytes;
    };
    const int64_t tokens = plan.tokens, pitch = plan.pitch();
    std::vector<Region> regions = {
        {plan.barriers_at, 16 * 8},
        {plan.layers_at, Plan::kLayersThere * Plan::kLayerBytes},
        {plan.squares_at, 4 * tokens * Plan::kWarps},
        {plan.x_at, 4 * tokens * plan.x_pitch()},
        {plan.u_at, 12 * tokens * Plan::kMostChannels},
        {plan.dbc_at, 4 * tokens * plan.x_rows()},
        {plan.x_parts_at, 4 * Plan::kBlocks * tokens * Plan::kWarps * Plan::kXSlots},
        {plan.out_parts_at, 4 * tokens * plan.out_rows * Plan::kPartPitch},
        {plan.lists_at, int64_t{2} * Plan::kProducts * Plan::kListBytes},
        {plan.begins_at, int64_t{2} * Plan::kProducts * Plan::kRowBeginsBytes},
        {plan.outliers_at, int64_t{8} * Plan::kProducts * Plan::kListed},
        {plan.norm_at, 4 * plan.hidden},
        {plan.vectors_at, 4 * Plan::kVectors * pitch},
        {plan.past_at, 8 * tokens * (Plan::kTaps - 1) * pitch},
        {plan.states_at, 8 * tokens * Plan::kStates * pitch + 4 * Plan::kWide.dt_rows},
        {Plan::kTablesAt, Plan::kTablesBytes},
    };
    for (int product = 0; product < Plan::kProducts; ++product) {
      int64_t most = 0;
      for (int block = 0; block < plan.blocks(); ++block) {
        const int64_t rows = plan.rows(product, block / Plan::kBlocks, block % Plan::kBlocks).count;
        const int64_t cols = product == Plan::kIn ? plan.hidden : product == Plan::kDt ? plan.rank : plan.channels;
        most = std::max(most, rows * cols);
      }
      regions.push_back({plan.bytes_at[product], most});
    }
    std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.at < b.at; });
    for (size_t i = 0; i < regions.size(); ++i) {
      EXPECT_EQ(regions[i].at % 16, 0u);
      const int64_t end = i + 1 < regions.size() ? regions[i + 1].at : plan.bytes;
      EXPECT_LE(int64_t{regions[i].at} + regions[i].bytes, end);
    }
  }
}

}  // namespace
}  // namespace hxq::cuda
