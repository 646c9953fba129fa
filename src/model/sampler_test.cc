#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
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

TEST(Sampler, TakesTheFirstOfTheLargestOfManyWhereverItIs) {
  std::mt19937 random(3);
  std::uniform_int_distribution<int> level(-9, 9);  // equal ones are common
  for (const size_t vocab : {1, 2, 63, 64, 65, 127, 128, 500, 1000}) {
    for (int round = 0; round < 40; ++round) {
      std::vector<float> logits(vocab);
      for (float& logit : logits) logit = static_cast<float>(level(random)) / 4 - 20;
      if (round % 2 == 1) logits[random() % vocab] = 7;
      const auto expected = std::max_element(logits.begin(), logits.end()) - logits.begin();
      ASSERT_EQ(Sampler({}).choose(logits), expected) << vocab;
    }
  }
  std::vector<float> zeros(200, -0.0f);
  zeros[100] = 0;
  EXPECT_EQ(Sampler({}).choose(zeros), 0) << "both zeros are equal";
  EXPECT_EQ(Sampler::choose(17), 17);
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
    std::ranges::fill(excluded, -kInfinity);
    EXPECT_THROW(Sampler(options).choose(excluded), Error);
  }
  for (const size_t vocab : {1, 64, 130}) {
    for (size_t i = 0; i < vocab; ++i) {
      std::vector<float> logits(vocab, 1);
      logits[i] = kNan;
      EXPECT_THROW(Sampler({}).choose(logits), Error) << i;
    }
  }
  EXPECT_THROW(Sampler::choose(-1), Error) << "what Logits::most_likely gives then";
}

}  // namespace
}  // namespace hxq
