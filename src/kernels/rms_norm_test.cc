#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/cpu_context.h"
#include "kernels/kernels.h"

namespace hxq::kernels {
namespace {

class RmsNorm : public ::testing::TestWithParam<Target> {};

TEST_P(RmsNorm, GroupByGroup) {
  constexpr int64_t kTokens = 3, kDim = 60;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(kTokens * kDim), weight(kDim);
  for (float& value : x) value = normal(random);
  for (float& value : weight) value = normal(random);
  for (const int64_t groups : {1, 2, 3, 60}) {
    const int64_t dim = kDim / groups;
    std::vector<float> y = x;  // in place
    Scratch scratch(2);
    run_on_cpu(2, GetParam(), scratch, [&](const Context& context) {
      rms_norm({.x = y.data(),
                .weight = weight.data(),
                .y = y.data(),
                .tokens = kTokens,
                .dim = kDim,
                .groups = groups,
                .eps = 0.01f},
               context);
    });
    for (int64_t i = 0; i < kTokens * kDim; ++i) {
      const int64_t begin = i / dim * dim;
      double mean = 0;
      for (int64_t j = begin; j < begin + dim; ++j) mean += static_cast<double>(x[j]) * x[j] / static_cast<double>(dim);
      ASSERT_NEAR(y[i], x[i] / std::sqrt(mean + 0.01) * weight[i % kDim], 1e-6) << groups << " groups, element " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, RmsNorm, ::testing::ValuesIn(supported_targets()),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace hxq::kernels
