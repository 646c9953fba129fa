// Rotary positions, attention and gated activations against their definitions in double.

#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu_context.h"
#include "kernels/kv_cache.h"
#include "kernels/uniform_batch.h"

namespace hxq::kernels {
namespace {

std::vector<float> random_values(int64_t count, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

struct Case {
  int64_t kv_heads = 2;
  int64_t group = 2;
  int64_t head_dim = 64;
  int64_t tokens = 150;  // more than two tiles
  int64_t window = 0;
  bool rotary = true;
  DType dtype = DType::f32;

  int64_t heads() const { return kv_heads * group; }
  int64_t q_stride() const { return heads() * head_dim + 3; }  // rows may be wider than what is read
  int64_t kv_stride() const { return kv_heads * head_dim + 5; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

/// Queries, keys and values of a sequence before rotation.
struct Inputs {
  explicit Inputs(const Case& of)
      : q(random_values(of.tokens * of.q_stride(), 1, 2)),
        k(random_values(of.tokens * of.kv_stride(), 2, 2)),
        v(random_values(of.tokens * of.kv_stride(), 3)) {
    for (int64_t i = 0; i < of.head_dim / 2; ++i) {
      frequency.push_back(
          static_cast<float>(std::pow(100.0, -2.0 * static_cast<double>(i) / static_cast<double>(of.head_dim))));
    }
  }

  std::vector<float> q, k, v, frequency;
};

/// The sequence in calls of these many tokens; y is [tokens, heads * head_dim].
std::vector<float> run(const Case& of, Inputs in, const std::vector<int64_t>& calls, Target target, int threads) {
  std::vector<float> y(static_cast<size_t>(of.tokens * of.heads() * of.head_dim), NAN);
  std::vector<float> table(static_cast<size_t>(of.tokens * of.head_dim));
  KvCache cache(cpu_device(), of.kv_heads, of.head_dim, of.dtype);
  Scratch scratch(threads);
  int64_t position = 0;
  for (const int64_t tokens : calls) {
    cache.reserve(position + tokens);
    const UniformBatch batch(1, tokens, position);
    void* tiles = cache.tiles();
    void* frequency = in.frequency.data();
    KvCacheView view = KvCache::shape(of.kv_heads, of.head_dim, of.dtype);
    view.tiles = &tiles;
    run_on_cpu(threads, target, scratch, [&](const Context& context) {
      rotary_table(
          {.inverse_frequency = &frequency, .half = of.head_dim / 2, .batch = batch.view(), .table = table.data()},
          context);
      extend_cache({.q = in.q.data() + position * of.q_stride(),
                    .k = in.k.data() + position * of.kv_stride(),
                    .v = in.v.data() + position * of.kv_stride(),
                    .q_stride = of.q_stride(),
                    .kv_stride = of.kv_stride(),
                    .query_heads = of.heads(),
                    .rotary_table = of.rotary ? table.data() : nullptr,
                    .batch = batch.view(),
                    .cache = view},
                   context);
      attention({.q = in.q.data() + position * of.q_stride(),
                 .q_stride = of.q_stride(),
                 .y = y.data() + position * of.heads() * of.head_dim,
                 .y_stride = of.heads() * of.head_dim,
                 .query_heads = of.heads(),
                 .scale = of.scale(),
                 .window = of.window,
                 .batch = batch.view(),
                 .cache = view},
                context);
    });
    position += tokens;
  }
  EXPECT_EQ(position, of.tokens);
  return y;
}

/// A head rotated in double.
std::vector<double> rotated(const Case& of, const Inputs& in, const float* x, int64_t position) {
  std::vector<double> out(x, x + of.head_dim);
  const int64_t half = of.head_dim / 2;
  for (int64_t i = 0; of.rotary && i < half; ++i) {
    const double angle = static_cast<double>(position) * static_cast<double>(in.frequency[static_cast<size_t>(i)]);
    const double low = x[i];
    const double high = x[i + half];
    out[static_cast<size_t>(i)] = low * std::cos(angle) - high * std::sin(angle);
    out[static_cast<size_t>(i + half)] = low * std::sin(angle) + high * std::cos(angle);
  }
  return out;
}

std::vector<double> brute_force(const Case& of, const Inputs& in) {
  std::vector<double> y;
  for (int64_t t = 0; t < of.tokens; ++t) {
    for (int64_t head = 0; head < of.heads(); ++head) {
      const auto q = rotated(of, in, in.q.data() + t * of.q_stride() + head * of.head_dim, t);
      const int64_t first = of.window > 0 ? std::max<int64_t>(0, t - of.window + 1) : 0;
      const int64_t offset = head / of.group * of.head_dim;
      std::vector<double> sum(static_cast<size_t>(of.head_dim));
      double total = 0;
      for (int64_t s = first; s <= t; ++s) {
        const auto k = rotated(of, in, in.k.data() + s * of.kv_stride() + offset, s);
        double score = 0;
        for (size_t i = 0; i < q.size(); ++i) score += q[i] * k[i];
        const double weight = std::exp(score * static_cast<double>(of.scale()));
        total += weight;
        for (size_t i = 0; i < sum.size(); ++i) {
          sum[i] += weight * static_cast<double>(in.v[static_cast<size_t>(s * of.kv_stride() + offset) + i]);
        }
      }
      for (const double value : sum) y.push_back(value / total);
    }
  }
  return y;
}

double largest_difference(const std::vector<float>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - expected[i]);
    if (!(difference <= largest)) largest = difference;  // a NaN stays
  }
  return largest;
}

const Case kCases[] = {
    {.kv_heads = 3, .group = 1, .head_dim = 8},
    {.kv_heads = 2, .group = 2, .head_dim = 32},
    {.kv_heads = 2, .group = 4, .head_dim = 64},
    {.kv_heads = 1, .group = 8, .head_dim = 80},
    {.kv_heads = 2, .group = 2, .head_dim = 128, .tokens = 65},
    {.kv_heads = 1, .group = 3, .head_dim = 20, .rotary = false},
    {.kv_heads = 2, .group = 2, .head_dim = 32, .tokens = 200, .window = 1},
    {.kv_heads = 1, .group = 4, .head_dim = 32, .tokens = 200, .window = 64},
    {.kv_heads = 2, .group = 1, .head_dim = 16, .tokens = 200, .window = 100},
    {.kv_heads = 2, .group = 2, .head_dim = 64, .tokens = 1},
};

std::string name_of(const Case& of) {
  return std::to_string(of.kv_heads) + "x" + std::to_string(of.group) + " heads of " + std::to_string(of.head_dim) +
         ", window " + std::to_string(of.window);
}

TEST(Attention, EqualsBruteForceOnEveryTarget) {
  for (const Case& of : kCases) {
    const Inputs in(of);
    const std::vector<double> expected = brute_force(of, in);
    for (const Target target : supported_targets()) {
      const double difference = largest_difference(run(of, in, {of.tokens}, target, 1), expected);
      EXPECT_LE(difference, 1e-5) << name_of(target) << ", " << name_of(of);
      EXPECT_GT(difference, 0) << "a comparison with itself";
    }
  }
}

TEST(Attention, CallsTeamsAndSplitsDoNotChangeABit) {
  for (Case of : kCases) {
    if (of.tokens < 150) continue;
    for (const DType dtype : {DType::f32, DType::f16}) {
      of.dtype = dtype;
      const Inputs in(of);
      for (const Target target : supported_targets()) {
        const std::vector<float> whole = run(of, in, {of.tokens}, target, 1);
        EXPECT_EQ(run(of, in, {of.tokens}, target, 5), whole) << name_of(of);
        EXPECT_EQ(run(of, in, {1, 62, 3, 70, of.tokens - 136}, target, 2), whole) << name_of(of);
        EXPECT_EQ(run(of, in, std::vector<int64_t>(static_cast<size_t>(of.tokens), 1), target, 1), whole)
            << name_of(of);
      }
    }
  }
}

TEST(Attention, HalfPrecisionCacheRoundsKeysAndValuesAlone) {
  Case of{.kv_heads = 2, .group = 4, .head_dim = 64};
  const Inputs in(of);
  const std::vector<double> expected = brute_force(of, in);
  of.dtype = DType::f16;
  for (const Target target : supported_targets()) {
    const double difference = largest_difference(run(of, in, {of.tokens}, target, 2), expected);
    EXPECT_LE(difference, 1e-2) << name_of(target);
    EXPECT_GT(difference, 1e-4) << "keys and values are not in half precision";
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const Case of{.kv_heads = 1, .group = 1, .head_dim = 16, .tokens = 130, .rotary = false};
  Inputs in(of);
  for (float& q : in.q) q *= 1000;
  for (const Target target : supported_targets()) {
    for (const float y : run(of, in, {of.tokens}, target, 1)) ASSERT_TRUE(std::isfinite(y));
  }
}

TEST(KvCache, TilesStayWhereTheyAreAsTheSequenceGrows) {
  KvCache cache(cpu_device(), 4, 60, DType::f32);
  const auto tile = [&](int64_t number) { return static_cast<std::byte* const*>(cache.tiles())[number]; };
  cache.reserve(1);
  std::byte* first = tile(0);
  const KvCacheView shape = KvCache::shape(4, 60, DType::f32);
  EXPECT_EQ(shape.tile_bytes(), 4 * 64 * KvCacheView::kTile * 4);
  EXPECT_EQ(std::count(first, first + 2 * shape.tile_bytes(), std::byte{0}), 2 * shape.tile_bytes());
  first[0] = std::byte{7};
  cache.reserve(10 * KvCacheView::kTile + 1);
  EXPECT_EQ(tile(0), first);
  EXPECT_EQ(first[0], std::byte{7});
  for (int64_t number = 1; number <= 10; ++number) EXPECT_NE(tile(number), nullptr);
}

TEST(GatedActivation, EqualsItsDefinition) {
  constexpr int64_t kTokens = 3;
  constexpr int64_t kDim = 77;
  constexpr int64_t kStride = 80;
  const std::vector<float> gate = random_values(kTokens * kStride, 4, 3);
  const std::vector<float> up = random_values(kTokens * kStride, 5);
  for (const Target target : supported_targets()) {
    for (const Activation activation : {Activation::silu, Activation::gelu}) {
      std::vector<float> y(kTokens * kStride, -1);
      Scratch scratch(2);
      run_on_cpu(2, target, scratch, [&](const Context& context) {
        gated_activation({.gate = gate.data(),
                          .up = up.data(),
                          .x_stride = kStride,
                          .y = y.data(),
                          .y_stride = kStride,
                          .tokens = kTokens,
                          .dim = kDim,
                          .activation = activation},
                         context);
      });
      for (size_t i = 0; i < y.size(); ++i) {
        const double g = gate[i];
        const double f =
            activation == Activation::silu ? g / (1 + std::exp(-g)) : g * std::erfc(-g / std::sqrt(2.0)) / 2;
        const double expected = i % kStride < kDim ? f * static_cast<double>(up[i]) : -1;
        ASSERT_NEAR(y[i], expected, 1e-6 * std::max(1.0, std::abs(expected))) << name_of(target);
      }
    }
  }
}

TEST(Gelu, KeepsItsPrecisionWhereItIsTiny) {
  std::vector<float> x;
  for (float value = -9; value < 9; value += 0.01f) x.push_back(value);
  for (const Target target : supported_targets()) {
    std::vector<float> y(x.size());
    cpu::ops_of(target).gelu(x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = static_cast<double>(x[i]) * std::erfc(-static_cast<double>(x[i]) / std::sqrt(2.0)) / 2;
      ASSERT_NEAR(y[i], expected, 6e-6 * std::abs(expected)) << x[i];
    }
  }
}

}  // namespace
}  // namespace hxq::kernels
