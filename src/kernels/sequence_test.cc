#include <deque>

#include "kernels/cpu/ops.h"
#include "kernels/kernels_test_data.h"
#include "kernels/uniform_batch.h"

namespace hxq::kernels::testing {
namespace {

class SequenceTest : public ::testing::TestWithParam<Target> {
 protected:
  template <class Operation>
  void run(int threads, Operation&& operation) {
    Scratch scratch(threads);
    run_on_cpu(threads, GetParam(), scratch, operation);
  }
};

double silu(double x) { return x / (1 + std::exp(-x)); }

/// log(1 + e^x) without overflow.
double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

/// Distance in units of the last place of a float near `expected`; subnormal numbers have the unit of the smallest
/// normal one.
double ulps(float value, double expected) {
  const double unit = std::ldexp(1.0, std::max(std::ilogb(static_cast<float>(expected)), -126) - 23);
  return std::fabs(value - expected) / unit;
}

/// Floats of all magnitudes and both signs up to `limit`, and 0.
std::vector<float> all_magnitudes(float limit) {
  std::vector<float> values = {0.0f, -0.0f};
  for (float x = 0x1p-140f; x <= limit; x = std::max(x * 1.0009f, std::nextafter(x, 1.0f))) {
    values.push_back(x);
    values.push_back(-x);
  }
  for (float x = -limit; x < limit; x += limit / 40000) values.push_back(x);
  return values;
}

using Function = void (*)(const float*, float*, int64_t);

template <class Reference>
double worst_ulps(Function function, const std::vector<float>& x, Reference reference) {
  std::vector<float> y(x.size());
  function(x.data(), y.data(), static_cast<int64_t>(x.size()));
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = reference(static_cast<double>(x[i]));
    if (std::fabs(expected) > 3.4028235677973366e38) {
      EXPECT_EQ(y[i], INFINITY) << x[i];
    } else {
      worst = std::max(worst, ulps(y[i], expected));
    }
  }
  return worst;
}

TEST_P(SequenceTest, ElementaryFunctionsAreAccurate) {
  const cpu::Ops& ops = cpu::ops_of(GetParam());
  EXPECT_LT(worst_ulps(ops.exp, all_magnitudes(110), [](double x) { return std::exp(x); }), 2);
  EXPECT_LT(worst_ulps(ops.softplus, all_magnitudes(120), softplus), 3);
  EXPECT_LT(worst_ulps(ops.silu, all_magnitudes(80), silu), 4);
}

TEST_P(SequenceTest, ElementaryFunctionsAtTheEnds) {
  const cpu::Ops& ops = cpu::ops_of(GetParam());
  const std::vector<float> x = {NAN, -NAN, INFINITY, -INFINITY, 1e30f, -1e30f, 88.73f, -104.0f, -200.0f};
  std::vector<float> y(x.size());
  ops.exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[1]));
  EXPECT_EQ(y[2], INFINITY);
  EXPECT_EQ(y[3], 0);
  EXPECT_EQ(y[4], INFINITY);
  EXPECT_EQ(y[5], 0);
  EXPECT_EQ(y[6], INFINITY);
  EXPECT_EQ(y[7], 0);
  EXPECT_EQ(y[8], 0);
  ops.softplus(x.data(), y.data(), static_cast<int64_t>(x.size()));
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[1]));
  EXPECT_EQ(y[2], INFINITY);
  EXPECT_EQ(y[3], 0);
  EXPECT_EQ(y[4], 1e30f);
  EXPECT_EQ(y[5], 0);
  EXPECT_EQ(y[6], 88.73f);
  ops.silu(x.data(), y.data(), static_cast<int64_t>(x.size()));
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[1]));
  EXPECT_EQ(y[2], INFINITY);
  EXPECT_EQ(y[4], 1e30f);
  EXPECT_EQ(y[5], 0);
  EXPECT_EQ(y[8], 0);
}

TEST_P(SequenceTest, RmsNorm) {
  for (const int64_t dim : {1, 7, 16, 100, 768}) {
    for (const int64_t tokens : {1, 3}) {
      const auto weight = normal_floats(dim, 1);
      auto x = normal_floats(tokens * dim, 2, 3);
      const auto before = x;
      constexpr float kEps = 1e-5f;
      run(2, [&](const Context& context) {
        rms_norm({.x = x.data(), .weight = weight.data(), .y = x.data(), .tokens = tokens, .dim = dim, .eps = kEps},
                 context);
      });
      for (size_t t = 0; t < static_cast<size_t>(tokens); ++t) {
        double squares = 0;
        const size_t n = static_cast<size_t>(dim);
        for (size_t i = 0; i < n; ++i) squares += static_cast<double>(before[t * n + i]) * before[t * n + i];
        for (size_t i = 0; i < n; ++i) {
          const double expected = before[t * n + i] / std::sqrt(squares / static_cast<double>(dim) + kEps) * weight[i];
          ASSERT_NEAR(x[t * n + i], expected, 4e-7 * std::fabs(expected) + 1e-12);
        }
      }
    }
  }
}

struct ConvCase {
  std::vector<float> x, weight, bias, state, y;
  int64_t tokens, channels, width, x_stride;
  std::deque<UniformBatch> batches = {};  // of the arguments
  void* state_address = state.data();

  ConvCase(int64_t tokens_, int64_t channels_, int64_t width_)
      : x(normal_floats(tokens_ * (channels_ + 3), 1)),
        weight(normal_floats(width_ * channels_, 2)),
        bias(normal_floats(channels_, 3)),
        state(normal_floats((width_ - 1) * channels_, 4)),
        y(static_cast<size_t>(tokens_ * channels_)),
        tokens(tokens_),
        channels(channels_),
        width(width_),
        x_stride(channels_ + 3) {}

  ConvArgs args(int64_t first, int64_t count, bool with_bias) {
    return {.x = x.data() + first * x_stride,
            .x_stride = x_stride,
            .y = y.data() + first * channels,
            .batch = batches.emplace_back(1, count).view(),
            .channels = channels,
            .width = width,
            .weight = weight.data(),
            .bias = with_bias ? bias.data() : nullptr,
            .state = &state_address,
            .state_rows = width - 1};
  }
};

TEST_P(SequenceTest, ConvolutionOfTokensInPieces) {
  for (const int64_t channels : {1, 5, 16, 33, 200}) {
    for (const int64_t width : {1, 2, 4, 5}) {
      for (const std::vector<int64_t>& pieces : {std::vector<int64_t>{1}, {7}, {3, 4}, {1, 1, 2, 3}, {0, 7}}) {
        int64_t tokens = 0;
        for (const int64_t piece : pieces) tokens += piece;
        const bool with_bias = width % 2 == 0;
        ConvCase c(tokens, channels, width);
        const std::vector<float> past = c.state;
        int64_t first = 0;
        for (const int64_t piece : pieces) {
          const ConvArgs args = c.args(first, piece, with_bias);
          run(channels == 200 ? 3 : 1, [&](const Context& context) { causal_conv1d_silu(args, context); });
          first += piece;
        }
        const auto input = [&](int64_t t, int64_t channel) -> double {
          return t < 0 ? past[static_cast<size_t>((t + width - 1) * channels + channel)]
                       : c.x[static_cast<size_t>(t * c.x_stride + channel)];
        };
        for (int64_t channel = 0; channel < channels; ++channel) {
          for (int64_t t = 0; t < tokens; ++t) {
            double sum = with_bias ? c.bias[static_cast<size_t>(channel)] : 0.0, size = std::fabs(sum);
            for (int64_t j = 0; j < width; ++j) {
              const double product =
                  input(t - width + 1 + j, channel) * c.weight[static_cast<size_t>(j * channels + channel)];
              sum += product;
              size += std::fabs(product);
            }
            ASSERT_NEAR(c.y[static_cast<size_t>(t * channels + channel)], silu(sum), 1e-6 * size)
                << channels << " " << width << " " << t;
          }
          for (int64_t i = 0; i < width - 1; ++i) {
            ASSERT_EQ(c.state[static_cast<size_t>(i * channels + channel)], input(tokens - width + 1 + i, channel));
          }
        }
      }
    }
  }
}

struct ScanCase {
  int64_t tokens, channels, states;
  std::vector<float> u, dt, dt_bias, bc, z, a, d, state, y;
  std::deque<UniformBatch> batches = {};  // of the arguments
  void* state_address = state.data();

  ScanCase(int64_t tokens_, int64_t channels_, int64_t states_)
      : tokens(tokens_),
        channels(channels_),
        states(states_),
        u(normal_floats(tokens * channels, 1)),
        dt(normal_floats(tokens * channels, 2, 2)),
        dt_bias(normal_floats(channels, 3)),
        bc(normal_floats(tokens * (2 * states + 1), 4)),
        z(normal_floats(tokens * (channels + 5), 5, 2)),
        a(normal_floats(states * channels, 6)),
        d(normal_floats(channels, 7)),
        state(normal_floats(states * channels, 8)),
        y(u.size()) {
    for (float& value : a) value = -std::exp(value);
  }

  ScanArgs args(int64_t first, int64_t count, bool with_bias) {
    return {.u = u.data() + first * channels,
            .dt = dt.data() + first * channels,
            .dt_bias = with_bias ? dt_bias.data() : nullptr,
            .b = bc.data() + first * (2 * states + 1),
            .c = bc.data() + first * (2 * states + 1) + states,
            .bc_stride = 2 * states + 1,
            .z = z.data() + first * (channels + 5),
            .z_stride = channels + 5,
            .a = a.data(),
            .d = d.data(),
            .state = &state_address,
            .y = y.data() + first * channels,
            .batch = batches.emplace_back(1, count).view(),
            .channels = channels,
            .state_size = states};
  }
};

TEST_P(SequenceTest, ScanOfTokensInPieces) {
  for (const int64_t channels : {1, 16, 30, 200}) {
    for (const int64_t states : {1, 8, 16, 17}) {
      for (const std::vector<int64_t>& pieces : {std::vector<int64_t>{1}, {7}, {3, 4}, {16}, {40}, {15, 1, 20}}) {
        int64_t tokens = 0;
        for (const int64_t piece : pieces) tokens += piece;
        const bool with_bias = states != 8;
        ScanCase c(tokens, channels, states);
        std::vector<double> h(c.state.begin(), c.state.end());
        int64_t first = 0;
        for (const int64_t piece : pieces) {
          const ScanArgs args = c.args(first, piece, with_bias);
          run(channels == 200 ? 3 : 1, [&](const Context& context) { selective_scan(args, context); });
          first += piece;
        }
        const auto at = [](int64_t i) { return static_cast<size_t>(i); };
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t channel = 0; channel < channels; ++channel) {
            const double u = c.u[at(t * channels + channel)];
            const double delta = softplus(c.dt[at(t * channels + channel)] +
                                          (with_bias ? static_cast<double>(c.dt_bias[at(channel)]) : 0));
            double sum = c.d[at(channel)] * u, size = std::fabs(sum);
            for (int64_t n = 0; n < states; ++n) {
              double& state = h[at(n * channels + channel)];
              state = std::exp(delta * c.a[at(n * channels + channel)]) * state +
                      delta * c.bc[at(t * (2 * states + 1) + n)] * u;
              sum += state * c.bc[at(t * (2 * states + 1) + states + n)];
              size += std::fabs(state * c.bc[at(t * (2 * states + 1) + states + n)]);
            }
            const double gate = silu(c.z[at(t * (channels + 5) + channel)]);
            ASSERT_NEAR(c.y[at(t * channels + channel)], sum * gate, 3e-6 * size * std::fabs(gate) + 1e-30);
          }
        }
        for (size_t i = 0; i < h.size(); ++i) ASSERT_NEAR(c.state[i], h[i], 3e-6 * (std::fabs(h[i]) + 1));
      }
    }
  }
}

TEST_P(SequenceTest, ScanInPiecesHasTheSameBits) {
  ScanCase whole(7, 50, 16), pieces(7, 50, 16);
  const ScanArgs all = whole.args(0, 7, true), first = pieces.args(0, 3, true), rest = pieces.args(3, 4, true);
  run(1, [&](const Context& context) { selective_scan(all, context); });
  run(2, [&](const Context& context) {
    selective_scan(first, context);
    selective_scan(rest, context);
  });
  EXPECT_EQ(std::memcmp(whole.y.data(), pieces.y.data(), whole.y.size() * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(whole.state.data(), pieces.state.data(), whole.state.size() * sizeof(float)), 0);
}

TEST_P(SequenceTest, ScanMayWriteOverItsInput) {
  ScanCase apart(5, 40, 16), over(5, 40, 16);
  const ScanArgs other = apart.args(0, 5, true);
  ScanArgs args = over.args(0, 5, true);
  args.y = over.u.data();
  run(1, [&](const Context& context) { selective_scan(other, context); });
  run(1, [&](const Context& context) { selective_scan(args, context); });
  EXPECT_EQ(std::memcmp(apart.y.data(), over.u.data(), apart.y.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Targets, SequenceTest, ::testing::ValuesIn(supported_targets()), target_name);

}  // namespace
}  // namespace hxq::kernels::testing
