#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "hxq/error.h"
#include "hxq/generate.h"

namespace hxq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// How often each of the tokens is chosen from these logits.
std::vector<double> shares(const SamplingOptions& options, const std::vector<float>& logits) {
  constexpr int kDraws = 20000;
  Sampler sampler(options);
  std::vector<double> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> copy = logits;
    counts[static_cast<size_t>(sampler.choose(copy))] += 1.0 / kDraws;
  }
  return counts;
}

TEST(Sampler, TakesTheMostLikelyTokenAndTheFirstOfEquals) {
  std::vector<float> logits = {0, 3, 1, 3};
  EXPECT_EQ(Sampler({}).choose(logits), 1);
}

TEST(Sampler, DrawsAsOftenAsTheSoftmaxSays) {
  const std::vector<float> logits = {std::log(1.0f), std::log(2.0f), std::log(4.0f), std::log(1.0f)};
  const std::vector<double> all = shares({.temperature = 1}, logits);
  const std::vector<double> cold = shares({.temperature = 0.5}, logits);
  const std::vector<double> top2 = shares({.temperature = 1, .top_k = 2}, logits);
  const std::vector<double> nucleus = shares({.temperature = 1, .top_p = 0.6}, logits);
  const double near = 0.015;  // four standard deviations
  EXPECT_NEAR(all[2], 4.0 / 8, near);
  EXPECT_NEAR(all[0], 1.0 / 8, near);
  EXPECT_NEAR(cold[2], 16.0 / 22, near);
  EXPECT_NEAR(top2[2], 4.0 / 6, near);
  EXPECT_EQ(top2[0] + top2[3], 0);
  EXPECT_NEAR(nucleus[1], 2.0 / 6, near);
  EXPECT_EQ(nucleus[0] + nucleus[3], 0);
}

TEST(Sampler, PenalisesTokensThatWereSeen) {
  Sampler sampler({.repetition_penalty = 2});
  const std::array<int32_t, 2> seen = {0, 2};
  sampler.observe(seen);
  std::vector<float> logits = {3, 2, -1, -1.5f};
  EXPECT_EQ(sampler.choose(logits), 1);
  EXPECT_EQ(logits, (std::vector<float>{1.5f, 2, -2, -1.5f}));
}

TEST(Sampler, RefusesLogitsThatAreNotFinite) {
  for (const SamplingOptions& options :
       {SamplingOptions{}, SamplingOptions{.temperature = 1}, SamplingOptions{.temperature = 1, .top_k = 2},
        SamplingOptions{.temperature = 1, .top_p = 0.5}}) {
    for (const float bad : {kNan, kInfinity}) {
      std::vector<float> logits(4, bad);
      EXPECT_THROW(Sampler(options).choose(logits), Error);
    }
    std::vector<float> excluded = {-kInfinity, 1, -kInfinity, -kInfinity};
    EXPECT_EQ(Sampler(options).choose(excluded), 1);
  }
}

}  // namespace
}  // namespace hxq
