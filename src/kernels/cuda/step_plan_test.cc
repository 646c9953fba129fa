// How steps are laid out; nothing of it needs a GPU.

#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/step_program.h"

namespace hxq::cuda {
namespace {

/// Addresses that nothing is read from.
float* address(int64_t floats) { return reinterpret_cast<float*>(uintptr_t{1} << 40) + floats; }

CodebookWeight matrix(int64_t rows, int64_t cols) {
  return {.rows = rows, .cols = cols, .k = 256, .indices = address(0), .codebook = address(0)};
}

StepProducts products(const float* x, int64_t cols, std::vector<std::pair<int64_t, float*>> outputs,
                      bool accumulate = false) {
  StepProducts step{.input = {.x = {.data = x}}, .count = std::ssize(outputs)};
  for (size_t i = 0; i < outputs.size(); ++i) {
    step.products[i] = {
        .weight = matrix(outputs[i].first, cols), .y = {.data = outputs[i].second}, .accumulate = accumulate};
  }
  return step;
}

MambaStepArgs mamba(float* xz, float* y, int64_t channels) {
  return {.batch = {.count = 1, .max_rows = 1, .total_rows = 1},
          .conv = {.x = {.data = xz}, .channels = channels, .width = 4, .weight = address(0), .state_rows = 3},
          .x_proj = matrix(80, channels),
          .dt_proj = matrix(channels, 48),
          .scan = {.z = {.data = xz + channels}, .y = {.data = y}, .channels = channels, .state_size = 16}};
}

struct Planned {
  std::vector<StepPlan> plans;
  StepSize size;
  Step step;
};

Planned plan(const std::vector<StepOperation>& operations, int blocks) {
  Planned planned;
  planned.size = plan_step(operations, blocks, nullptr, nullptr, planned.step);
  if (planned.size.bytes == 0) return planned;
  std::vector<std::byte> image(planned.size.image_bytes);
  plan_step(operations, blocks, address(1 << 20), image.data(), planned.step);
  const StepPlan* plans = StepLayout::plans(image.data());
  planned.plans.assign(plans, plans + planned.step.operations);
  return planned;
}

TEST(StepPlan, EveryRowIsOneBlocks) {
  const Planned planned =
      plan({products(address(0), 768, {{2048, address(10000)}, {256, address(20000)}, {7, address(30000)}})}, 132);
  ASSERT_EQ(planned.plans.size(), 1u);
  const StepPlan& plan = planned.plans[0];
  ASSERT_EQ(plan.common.parts, 3);
  int next_block = 0;
  for (int i = 0; i < 3; ++i) {
    const StepPart& part = plan.part[i];
    EXPECT_EQ(part.first_block, next_block);
    next_block += part.blocks;
    int64_t next_row = 0;
    for (int block = 0; block < part.blocks; ++block) {
      EXPECT_EQ(part.share.begin(block), next_row);
      next_row += part.share.count(block);
    }
    EXPECT_EQ(next_row, i == 0 ? 2048 : i == 1 ? 256 : 7);
    EXPECT_EQ(part.y.shared, nullptr) << "nothing reads it";
  }
  EXPECT_LE(next_block, 132);
  EXPECT_FALSE(planned.plans[0].common.input.x.shared);
}

TEST(StepPlan, WhatAnOperationWroteIsReadFromIt) {
  float* x = address(0);
  float* y = address(10000);
  float* z = address(20000);
  const Planned planned = plan(
      {products(x, 64, {{128, y}}), products(y + 64, 64, {{64, z}}, true), products(z, 64, {{10, address(30000)}})}, 8);
  ASSERT_EQ(planned.plans.size(), 3u);
  EXPECT_EQ(planned.plans[0].common.input.x.shared, nullptr);
  EXPECT_EQ(planned.plans[1].common.input.x.shared, planned.plans[0].part[0].y.shared + 64);
  EXPECT_EQ(planned.plans[1].common.input.x.operation, 1u);
  EXPECT_EQ(planned.plans[1].part[0].residual.shared, nullptr);
  EXPECT_EQ(planned.plans[1].part[0].residual.data, z);
  EXPECT_EQ(planned.plans[2].common.input.x.operation, 2u);
}

TEST(StepPlan, ElementsAreWrittenAgainOnlyWhenAllThatUseThemAreDone) {
  float* x = address(0);
  float* y = address(10000);
  float* z = address(20000);
  // The third needs all of the second, and that all of the first.
  const std::vector<StepOperation> chain = {products(x, 64, {{64, y}}), products(y, 64, {{64, x}}),
                                            products(x, 64, {{64, y}}), products(y, 64, {{16, z}})};
  const Planned planned = plan(chain, 8);
  ASSERT_EQ(planned.plans.size(), 4u);
  EXPECT_EQ(planned.plans[2].part[0].y.shared, planned.plans[0].part[0].y.shared);
  EXPECT_EQ(planned.plans[3].common.input.x.shared, planned.plans[2].part[0].y.shared);

  const auto fits = [&](StepOperation last) {
    std::vector<StepOperation> operations = chain;
    operations.push_back(std::move(last));
    return plan(operations, 8).size.bytes > 0;
  };
  EXPECT_TRUE(fits(products(z, 16, {{64, y}}))) << "after the fourth, which reads y";
  EXPECT_FALSE(fits(products(address(30000), 64, {{64, y}}))) << "needs nothing: the fourth may still read y";
  EXPECT_FALSE(fits(products(address(30000), 64, {{64, x}}))) << "the third may still read x";
  EXPECT_FALSE(fits(products(address(30000), 64, {{16, z}}))) << "the fourth may still write z";
  EXPECT_FALSE(fits(products(y + 32, 64, {{16, address(40000)}}))) << "half of it written, half of it not";
  EXPECT_FALSE(fits(products(y + 1, 16, {{16, address(40000)}}))) << "pairs";
}

TEST(StepPlan, AllThatWroteElementsIsDoneBeforeTheyAreWrittenAgain) {
  float* y = address(10000);
  const auto fits = [&](const float* x) {
    return plan({products(address(0), 64, {{32, y}}), products(address(0), 64, {{32, y + 32}}),
                 products(x, 32, {{64, y}})},
                8)
               .size.bytes > 0;
  };
  EXPECT_FALSE(fits(y + 32)) << "the first may still write";
  EXPECT_FALSE(fits(y)) << "the second may still write";
}

TEST(StepPlan, WhoReadsAPartOfAnOperationDoesNotWaitForAllOfIt) {
  float* x = address(0);
  float* q = address(10000);
  float* k = address(20000);
  const std::vector<StepOperation> both = {products(address(30000), 64, {{64, x}}), products(x, 64, {{64, q}, {64, k}}),
                                           products(q, 64, {{64, x}})};
  EXPECT_EQ(plan(both, 8).size.bytes, 0u) << "blocks that have k may still read x";
  const std::vector<StepOperation> one = {products(address(30000), 64, {{64, x}}), products(x, 64, {{64, q}}),
                                          products(q, 64, {{64, x}})};
  EXPECT_GT(plan(one, 8).size.bytes, 0u);
}

TEST(StepPlan, MambaIsTheConvolutionOfTheProductBefore) {
  constexpr int64_t kChannels = 1536;
  float* x = address(0);
  float* xz = address(10000);
  float* y = address(20000);
  const Planned planned =
      plan({products(x, 768, {{2 * kChannels, xz}}), mamba(xz, y, kChannels), products(y, kChannels, {{768, x}}, true)},
           132);
  ASSERT_EQ(planned.plans.size(), 4u);
  EXPECT_EQ(planned.plans[0].part[0].conv.channels, kChannels);
  EXPECT_EQ(planned.plans[1].common.input.x.shared, planned.plans[0].part[0].y.shared);
  ASSERT_EQ(planned.plans[2].common.kind, StepKind::scan);
  const StepScan& scan = planned.plans[2].scan;
  EXPECT_EQ(scan.z.shared, planned.plans[0].part[0].y.shared + kChannels);
  EXPECT_EQ(scan.dbc.shared, planned.plans[1].part[0].y.shared);
  EXPECT_EQ(scan.first_block, 80) << "the blocks that have no row of x_proj";
  EXPECT_EQ(planned.plans[3].common.input.x.operation, 3u);
  EXPECT_EQ(plan({mamba(xz, y, kChannels)}, 132).size.bytes, 0u) << "no product before it";
}

TEST(StepPlan, TakesWhatItsKernelTakes) {
  EXPECT_TRUE(fits_step(products(address(0), 768, {{10, address(0)}})));
  EXPECT_FALSE(fits_step(products(address(0), 760, {{10, address(0)}}))) << "columns of a whole number of units";
  EXPECT_FALSE(fits_step(products(address(0), 16400, {{10, address(0)}}))) << "x in shared memory";
  StepProducts scaled = products(address(0), 768, {{10, address(0)}});
  scaled.products[0].weight.channel_scales = address(0);
  EXPECT_FALSE(fits_step(scaled));
  MambaStepArgs two = mamba(address(0), address(0), 1536);
  EXPECT_TRUE(fits_step(two));
  two.batch.count = 2;
  EXPECT_FALSE(fits_step(two));
}

}  // namespace
}  // namespace hxq::cuda
