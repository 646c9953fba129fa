// Mamba-2's recurrence against its definition, token by token in double.

#include "kernels/ssd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu_context.h"
#include "kernels/uniform_batch.h"

namespace hxq::kernels {
namespace {

struct Shape {
  int64_t heads = 4;
  int64_t head_dim = 64;
  int64_t groups = 1;
  int64_t state_size = 64;

  int64_t inner() const { return heads * head_dim; }
  int64_t row() const { return inner() + 2 * groups * state_size; }  // x, B, C
};

/// Inputs of a sequence, laid out as a layer has them: rows wider than what is read.
struct Sequence {
  Sequence(const Shape& of, int64_t length, unsigned seed) : shape(of), tokens(length) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](int64_t count) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = normal(random);
      return values;
    };
    xbc = fill(tokens * shape.row());
    dt = fill(tokens * dt_stride());
    z = fill(tokens * z_stride());
    dt_bias = fill(shape.heads);
    d = fill(shape.heads);
    a = fill(shape.heads);
    // From nearly no decay to a state that is gone within a token.
    for (size_t h = 0; h < a.size(); ++h) a[h] = -std::exp(a[h] + static_cast<float>(h % 7) - 4.0f);
    state = fill(shape.heads * shape.state_size * shape.head_dim);
  }

  int64_t dt_stride() const { return shape.heads + 3; }
  int64_t z_stride() const { return shape.inner() + 5; }

  Shape shape;
  int64_t tokens;
  std::vector<float> xbc, dt, z, dt_bias, d, a, state;
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();
};

struct Result {
  std::vector<float> y;
  std::vector<float> state;
};

/// The sequence in calls of these many tokens.
Result run(const Sequence& in, const std::vector<int64_t>& pieces, Target target, int threads) {
  const Shape& shape = in.shape;
  Result out{std::vector<float>(static_cast<size_t>(in.tokens * shape.inner())), in.state};
  Scratch scratch(threads);
  int64_t first = 0;
  for (const int64_t tokens : pieces) {
    const float* row = in.xbc.data() + first * shape.row();
    const UniformBatch batch(1, tokens);
    void* state = out.state.data();
    const SsdArgs args{.x = row,
                       .b = row + shape.inner(),
                       .c = row + shape.inner() + shape.groups * shape.state_size,
                       .xbc_stride = shape.row(),
                       .dt = in.dt.data() + first * in.dt_stride(),
                       .dt_stride = in.dt_stride(),
                       .dt_bias = in.dt_bias.data(),
                       .dt_min = in.dt_min,
                       .dt_max = in.dt_max,
                       .a = in.a.data(),
                       .d = in.d.data(),
                       .z = in.z.data() + first * in.z_stride(),
                       .z_stride = in.z_stride(),
                       .state = &state,
                       .y = out.y.data() + first * shape.inner(),
                       .batch = batch.view(),
                       .heads = shape.heads,
                       .head_dim = shape.head_dim,
                       .groups = shape.groups,
                       .state_size = shape.state_size};
    run_on_cpu(threads, target, scratch, [&](const Context& context) { ssd(args, context); });
    first += tokens;
  }
  return out;
}

struct Expected {
  std::vector<double> y;
  std::vector<double> y_size;  // sum of the magnitudes of the terms of y
  std::vector<double> state;
};

Expected brute_force(const Sequence& in) {
  const Shape& shape = in.shape;
  Expected out{
      std::vector<double>(static_cast<size_t>(in.tokens * shape.inner())), {}, {in.state.begin(), in.state.end()}};
  out.y_size = out.y;
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int64_t group = h / (shape.heads / shape.groups);
      const float* x = in.xbc.data() + t * shape.row() + h * shape.head_dim;
      const float* b = in.xbc.data() + t * shape.row() + shape.inner() + group * shape.state_size;
      const float* c = b + shape.groups * shape.state_size;
      const auto head = static_cast<size_t>(h);
      const double raw = static_cast<double>(in.dt[static_cast<size_t>(t * in.dt_stride() + h)]) + in.dt_bias[head];
      const double delta = std::clamp<double>(std::log1p(std::exp(raw)), in.dt_min, in.dt_max);
      const double decay = std::exp(delta * in.a[head]);
      for (int64_t p = 0; p < shape.head_dim; ++p) {
        const double skip = static_cast<double>(in.d[head]) * x[p];
        double sum = skip, size = std::abs(skip);
        for (int64_t n = 0; n < shape.state_size; ++n) {
          double& s = out.state[static_cast<size_t>((h * shape.state_size + n) * shape.head_dim + p)];
          s = decay * s + delta * b[n] * x[p];
          sum += s * c[n];
          size += std::abs(s * c[n]);
        }
        const double z = in.z[static_cast<size_t>(t * in.z_stride() + h * shape.head_dim + p)];
        const double gate = z / (1 + std::exp(-z));
        const auto at = static_cast<size_t>(t * shape.inner() + h * shape.head_dim + p);
        out.y[at] = sum * gate;
        out.y_size[at] = size * std::abs(gate);
      }
    }
  }
  return out;
}

void expect_close(const Result& result, const Expected& expected) {
  double y_error = 0, state_error = 0, state_size = 0;
  for (size_t i = 0; i < result.y.size(); ++i) {
    y_error = std::max(y_error, std::abs(result.y[i] - expected.y[i]) / (expected.y_size[i] + 1e-6));
  }
  for (const double s : expected.state) state_size = std::max(state_size, std::abs(s));
  for (size_t i = 0; i < result.state.size(); ++i) {
    state_error = std::max(state_error, std::abs(result.state[i] - expected.state[i]) / state_size);
  }
  EXPECT_LE(y_error, 1e-5);
  EXPECT_LE(state_error, 2e-6);
  EXPECT_GT(y_error, 0) << "floats cannot be that exact";
}

std::vector<int64_t> cut(int64_t tokens, int64_t piece) {
  std::vector<int64_t> pieces;
  for (; tokens > 0; tokens -= pieces.back()) pieces.push_back(std::min(piece, tokens));
  return pieces;
}

class Ssd : public ::testing::TestWithParam<Target> {};

TEST_P(Ssd, AllShapes) {
  unsigned seed = 0;
  for (const int64_t groups : {1, 2}) {
    for (const int64_t head_dim : {32, 64}) {
      for (const int64_t state_size : {16, 64, 128}) {
        const Sequence in({.heads = 4, .head_dim = head_dim, .groups = groups, .state_size = state_size}, 150, ++seed);
        SCOPED_TRACE(::testing::Message() << groups << " groups, head_dim " << head_dim << ", state " << state_size);
        const Expected expected = brute_force(in);
        expect_close(run(in, {in.tokens}, GetParam(), 1), expected);
        expect_close(run(in, cut(in.tokens, 1), GetParam(), 1), expected);
      }
    }
  }
}

TEST_P(Ssd, SizesThatFillNoVector) {
  for (const int64_t head_dim : {1, 5, 24, 50}) {
    const Sequence in({.heads = 3, .head_dim = head_dim, .groups = 3, .state_size = 7}, 70,
                      static_cast<unsigned>(head_dim));
    SCOPED_TRACE(head_dim);
    const Expected expected = brute_force(in);
    expect_close(run(in, {in.tokens}, GetParam(), 1), expected);
    expect_close(run(in, cut(in.tokens, 1), GetParam(), 1), expected);
  }
}

TEST_P(Ssd, EveryLengthAboutAChunk) {
  for (const int64_t tokens : {1, 2, 3, 15, 16, 17, 31, 61, 63, 64, 65, 66, 127, 128, 129, 200}) {
    const Sequence in({.heads = 2, .head_dim = 32, .state_size = 16}, tokens, static_cast<unsigned>(tokens));
    SCOPED_TRACE(tokens);
    expect_close(run(in, {tokens}, GetParam(), 1), brute_force(in));
  }
}

TEST_P(Ssd, PiecesGiveWhatOneCallGives) {
  const Sequence in({.heads = 4, .head_dim = 64, .groups = 2, .state_size = 64}, 200, 7);
  const Expected expected = brute_force(in);
  const std::vector<std::vector<int64_t>> cuts = {cut(200, 64), cut(200, 37), {1, 199}, {130, 1, 1, 68}, {199, 1}};
  for (const auto& pieces : cuts) expect_close(run(in, pieces, GetParam(), 1), expected);
}

TEST_P(Ssd, TheTeamDoesNotMatter) {
  for (const int64_t tokens : {1, 100}) {
    const Sequence in({.heads = 6, .head_dim = 32, .groups = 2, .state_size = 64}, tokens, 11);
    const Result alone = run(in, {tokens}, GetParam(), 1);
    for (const int threads : {2, 3, 5, 8}) {
      const Result together = run(in, {tokens}, GetParam(), threads);
      EXPECT_EQ(together.y, alone.y) << threads;
      EXPECT_EQ(together.state, alone.state) << threads;
    }
  }
}

TEST_P(Ssd, TimeStepsAreClamped) {
  Sequence in({.heads = 4, .head_dim = 32, .state_size = 16}, 90, 13);
  in.dt_min = 0.3f;
  in.dt_max = 0.9f;
  const Expected expected = brute_force(in);
  expect_close(run(in, {in.tokens}, GetParam(), 1), expected);
  expect_close(run(in, cut(in.tokens, 1), GetParam(), 1), expected);
}

TEST_P(Ssd, DecaysThatUnderflow) {
  Sequence in({.heads = 4, .head_dim = 32, .state_size = 16}, 130, 17);
  std::ranges::fill(in.dt, 3.0f);
  in.a = {-0.9f, -1.3f, -30.0f, -1e6f};  // exp of the chunk's sum underflows, at once in the last
  const Expected expected = brute_force(in);
  expect_close(run(in, {in.tokens}, GetParam(), 1), expected);
  expect_close(run(in, cut(in.tokens, 1), GetParam(), 1), expected);
}

INSTANTIATE_TEST_SUITE_P(Targets, Ssd, ::testing::ValuesIn(supported_targets()),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace hxq::kernels
