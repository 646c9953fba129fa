#include <algorithm>
#include <functional>

#include "capi_test_support.h"

namespace hxq::testing {
namespace {

using Doubles = std::vector<double>;

double silu(double x) { return x / (1 + std::exp(-x)); }
double softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }

/// The operations as their papers write them, in double; inputs contiguous, [batch, tokens, ...].
struct Sizes {
  int64_t batch, tokens, channels, extra, groups = 1, head_dim = 1;
};

Doubles conv(const Sizes& s, const std::vector<Doubles>& in) {
  const Doubles &x = in[0], &weight = in[1], &bias = in[2];
  Doubles y(x.size());
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        double sum = bias[c];
        for (int64_t j = std::max<int64_t>(0, s.extra - 1 - t); j < s.extra; ++j) {
          sum += weight[c * s.extra + j] * x[(b * s.tokens + t - s.extra + 1 + j) * s.channels + c];
        }
        y[(b * s.tokens + t) * s.channels + c] = silu(sum);
      }
    }
  }
  return y;
}

/// Inputs: u, dt, b, c, z, a_log, d, dt_bias.
Doubles scan(const Sizes& s, const std::vector<Doubles>& in) {
  const Doubles &u = in[0], &dt = in[1], &b = in[2], &c = in[3], &z = in[4], &a_log = in[5], &d = in[6], &bias = in[7];
  Doubles y(u.size());
  for (int64_t i = 0; i < s.batch; ++i) {
    for (int64_t ch = 0; ch < s.channels; ++ch) {
      Doubles h(s.extra);
      for (int64_t t = 0; t < s.tokens; ++t) {
        const int64_t row = i * s.tokens + t;
        const int64_t at = row * s.channels + ch;
        const double delta = softplus(dt[at] + bias[ch]);
        double sum = d[ch] * u[at];
        for (int64_t n = 0; n < s.extra; ++n) {
          h[n] = std::exp(-delta * std::exp(a_log[ch * s.extra + n])) * h[n] + delta * b[row * s.extra + n] * u[at];
          sum += h[n] * c[row * s.extra + n];
        }
        y[at] = sum * silu(z[at]);
      }
    }
  }
  return y;
}

/// Inputs: xbc, dt, z, a_log, d, dt_bias; channels is the number of heads.
Doubles ssd(const Sizes& s, const std::vector<Doubles>& in) {
  const Doubles &xbc = in[0], &dt = in[1], &z = in[2], &a_log = in[3], &d = in[4], &bias = in[5];
  const int64_t inner = s.channels * s.head_dim;
  const int64_t width = inner + 2 * s.groups * s.extra;
  Doubles y(z.size());
  for (int64_t i = 0; i < s.batch; ++i) {
    for (int64_t k = 0; k < inner; ++k) {
      const int64_t head = k / s.head_dim;
      const int64_t group = head / (s.channels / s.groups);
      Doubles h(s.extra);
      for (int64_t t = 0; t < s.tokens; ++t) {
        const int64_t row = i * s.tokens + t;
        const double* x = xbc.data() + row * width;
        const double delta = softplus(dt[row * s.channels + head] + bias[head]);
        double sum = d[head] * x[k];
        for (int64_t n = 0; n < s.extra; ++n) {
          h[n] = std::exp(-delta * std::exp(a_log[head])) * h[n] + delta * x[inner + group * s.extra + n] * x[k];
          sum += h[n] * x[inner + (s.groups + group) * s.extra + n];
        }
        y[row * inner + k] = sum * silu(z[row * inner + k]);
      }
    }
  }
  return y;
}

using Function = std::function<Doubles(const std::vector<Doubles>&)>;

/// Gradients against the slope of `function` in random directions: sum of gradient * direction for each input.
void expect_gradients(const Function& function, const std::vector<std::vector<float>>& inputs,
                      const std::vector<float>& g, const std::vector<std::vector<float>>& gradients) {
  std::vector<Doubles> exact;
  for (const auto& input : inputs) exact.emplace_back(input.begin(), input.end());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::vector<float> direction = random_floats(static_cast<int64_t>(inputs[i].size()), 77);
    constexpr double kStep = 1e-5;
    double slope = 0;
    double expected = 0;
    double scale = 0;
    for (const double sign : {1.0, -1.0}) {
      std::vector<Doubles> moved = exact;
      for (size_t j = 0; j < direction.size(); ++j) moved[i][j] += sign * kStep * direction[j];
      const Doubles y = function(moved);
      for (size_t j = 0; j < y.size(); ++j) slope += sign * y[j] * g[j] / (2 * kStep);
    }
    for (size_t j = 0; j < direction.size(); ++j) {
      const double term = static_cast<double>(gradients[i][j]) * direction[j];
      expected += term;
      scale += term * term;
    }
    EXPECT_NEAR(slope, expected, 1e-4 * std::sqrt(scale) + 1e-5) << "input " << i;
  }
}

std::vector<Doubles> doubles(const std::vector<std::vector<float>>& inputs) {
  std::vector<Doubles> result;
  for (const auto& input : inputs) result.emplace_back(input.begin(), input.end());
  return result;
}

/// Rows of n floats with room between them that must not be read.
std::vector<float> spread(const std::vector<float>& rows, int64_t n, int64_t stride) {
  std::vector<float> result(rows.size() / n * stride, std::nanf(""));
  for (size_t i = 0; i < rows.size(); ++i) result[i / n * stride + i % n] = rows[i];
  return result;
}

struct ConvCase {
  Sizes sizes{.batch = 2, .tokens = 21, .channels = 19, .extra = 4};
  std::vector<std::vector<float>> inputs{random_floats(2 * 21 * 19, 1), random_floats(19 * 4, 2), random_floats(19, 3)};
  std::vector<float> x = spread(inputs[0], 19, 23);
  hxq_conv_args args{.batch = 2,
                     .tokens = 21,
                     .channels = 19,
                     .width = 4,
                     .x = {x.data(), 23},
                     .weight = inputs[1].data(),
                     .bias = inputs[2].data()};
};

TEST(Conv, IsThatOfThePaper) {
  ConvCase c;
  std::vector<float> y(c.inputs[0].size());
  c.args.y = y.data();
  ASSERT_OK(hxq_causal_conv1d(make_context().get(), &c.args));
  EXPECT_LT(relative_error(y, conv(c.sizes, doubles(c.inputs))), 3e-6);
}

TEST(Conv, ContinuesFromAState) {
  ConvCase c;
  std::vector<float> whole(c.inputs[0].size());
  c.args.y = whole.data();
  const ContextHandle context = make_context();
  ASSERT_OK(hxq_causal_conv1d(context.get(), &c.args));
  for (const int64_t rows : {3, 4}) {
    std::vector<float> state(rows * 19);
    for (int64_t begin = 0; begin < 21;) {
      const int64_t count = std::min<int64_t>(begin == 0 ? 1 : 9, 21 - begin);
      std::vector<float> y(count * 19);
      hxq_conv_args piece = c.args;
      piece.batch = 1;
      piece.tokens = count;
      piece.x.data = c.x.data() + begin * 23;
      piece.state = state.data();
      piece.state_rows = rows;
      piece.y = y.data();
      ASSERT_OK(hxq_causal_conv1d(context.get(), &piece));
      EXPECT_TRUE(std::equal(y.begin(), y.end(), whole.begin() + begin * 19));
      begin += count;
    }
    EXPECT_TRUE(std::equal(state.begin(), state.end(), c.inputs[0].begin() + (21 - rows) * 19));
  }
}

TEST(Conv, GradientsAreSlopes) {
  ConvCase c;
  const std::vector<float> g = random_floats(2 * 21 * 19, 5);
  std::vector<std::vector<float>> out{std::vector<float>(2 * 21 * 19), std::vector<float>(19 * 4),
                                      std::vector<float>(19)};
  const hxq_conv_gradients gradients = {g.data(), out[0].data(), out[1].data(), out[2].data()};
  ASSERT_OK(hxq_causal_conv1d_gradient(make_context().get(), &c.args, &gradients));
  expect_gradients([&](const auto& in) { return conv(c.sizes, in); }, c.inputs, g, out);
}

struct ScanCase {
  Sizes sizes{.batch = 2, .tokens = 17, .channels = 21, .extra = 5};
  std::vector<std::vector<float>> inputs{random_floats(2 * 17 * 21, 1), random_floats(2 * 17 * 21, 2),
                                         random_floats(2 * 17 * 5, 3),  random_floats(2 * 17 * 5, 4),
                                         random_floats(2 * 17 * 21, 5), random_floats(21 * 5, 6),
                                         random_floats(21, 7),          random_floats(21, 8)};
  std::vector<float> b = spread(inputs[2], 5, 11);
  std::vector<float> c = spread(inputs[3], 5, 11);
  std::vector<float> z = spread(inputs[4], 21, 40);
  std::vector<float> a = std::vector<float>(21 * 5);
  ContextHandle context = make_context();
  hxq_scan_args args{.batch = 2,
                     .tokens = 17,
                     .channels = 21,
                     .state_size = 5,
                     .u = inputs[0].data(),
                     .dt = inputs[1].data(),
                     .dt_bias = inputs[7].data(),
                     .b = {b.data(), 11},
                     .c = {c.data(), 11},
                     .z = {z.data(), 40},
                     .a = a.data(),
                     .d = inputs[6].data()};

  ScanCase() { EXPECT_OK(hxq_decay_rates(context.get(), inputs[5].data(), 21, 5, a.data())); }
};

TEST(Scan, DecayRatesAreThoseOfALog) {
  const ScanCase s;
  for (int64_t c = 0; c < 21; ++c) {
    for (int64_t n = 0; n < 5; ++n) {
      const double expected = -std::exp(s.inputs[5][c * 5 + n]);
      EXPECT_NEAR(s.a[n * 21 + c], expected, 1e-6 * -expected);
    }
  }
}

TEST(Scan, IsThatOfThePaper) {
  ScanCase s;
  std::vector<float> y(s.inputs[0].size());
  s.args.y = y.data();
  ASSERT_OK(hxq_selective_scan(s.context.get(), &s.args));
  EXPECT_LT(relative_error(y, scan(s.sizes, doubles(s.inputs))), 3e-6);
}

TEST(Scan, ContinuesFromAState) {
  ScanCase s;
  std::vector<float> whole(s.inputs[0].size());
  s.args.y = whole.data();
  ASSERT_OK(hxq_selective_scan(s.context.get(), &s.args));
  std::vector<float> state(5 * 21);
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 3}, {3, 1}, {4, 13}}) {
    std::vector<float> y(count * 21);
    hxq_scan_args piece = s.args;
    piece.batch = 1;
    piece.tokens = count;
    piece.u += begin * 21;
    piece.dt += begin * 21;
    piece.b.data += begin * 11;
    piece.c.data += begin * 11;
    piece.z.data += begin * 40;
    piece.state = state.data();
    piece.y = y.data();
    ASSERT_OK(hxq_selective_scan(s.context.get(), &piece));
    EXPECT_LT(relative_error(y, std::vector<float>(whole.begin() + begin * 21, whole.begin() + (begin + count) * 21)),
              1e-6);
  }
}

TEST(Scan, GradientsAreSlopes) {
  ScanCase s;
  const std::vector<float> g = random_floats(2 * 17 * 21, 9);
  std::vector<std::vector<float>> out;
  for (const auto& input : s.inputs) out.emplace_back(input.size());
  const hxq_scan_gradients gradients = {.g = g.data(),
                                        .du = out[0].data(),
                                        .ddt = out[1].data(),
                                        .dz = out[4].data(),
                                        .db = out[2].data(),
                                        .dc = out[3].data(),
                                        .da_log = out[5].data(),
                                        .dd = out[6].data(),
                                        .ddt_bias = out[7].data()};
  ASSERT_OK(hxq_selective_scan_gradient(s.context.get(), &s.args, &gradients));
  expect_gradients([&](const auto& in) { return scan(s.sizes, in); }, s.inputs, g, out);
}

struct SsdCase {
  static constexpr int64_t kInner = 4 * 6;
  static constexpr int64_t kWidth = kInner + 2 * 2 * 5;
  Sizes sizes{.batch = 2, .tokens = 19, .channels = 4, .extra = 5, .groups = 2, .head_dim = 6};
  std::vector<std::vector<float>> inputs{random_floats(2 * 19 * kWidth, 1),
                                         random_floats(2 * 19 * 4, 2),
                                         random_floats(2 * 19 * kInner, 3),
                                         random_floats(4, 4),
                                         random_floats(4, 5),
                                         random_floats(4, 6)};
  std::vector<float> xbc = spread(inputs[0], kWidth, kWidth + 9);
  std::vector<float> dt = spread(inputs[1], 4, 7);
  std::vector<float> z = spread(inputs[2], kInner, kInner + 1);
  hxq_ssd_args args{.batch = 2,
                    .tokens = 19,
                    .heads = 4,
                    .head_dim = 6,
                    .groups = 2,
                    .state_size = 5,
                    .xbc = {xbc.data(), kWidth + 9},
                    .dt = {dt.data(), 7},
                    .z = {z.data(), kInner + 1},
                    .dt_bias = inputs[5].data(),
                    .dt_min = 0,
                    .dt_max = HUGE_VALF,
                    .a_log = inputs[3].data(),
                    .d = inputs[4].data()};
};

TEST(Ssd, IsThatOfThePaper) {
  SsdCase s;
  std::vector<float> y(s.inputs[2].size());
  s.args.y = y.data();
  ASSERT_OK(hxq_ssd(make_context().get(), &s.args));
  EXPECT_LT(relative_error(y, ssd(s.sizes, doubles(s.inputs))), 3e-6);
}

TEST(Ssd, ContinuesFromAState) {
  SsdCase s;
  const ContextHandle context = make_context();
  std::vector<float> whole(s.inputs[2].size());
  s.args.y = whole.data();
  ASSERT_OK(hxq_ssd(context.get(), &s.args));
  std::vector<float> state(4 * 5 * 6);
  for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 3}, {3, 1}, {4, 15}}) {
    std::vector<float> y(count * SsdCase::kInner);
    hxq_ssd_args piece = s.args;
    piece.batch = 1;
    piece.tokens = count;
    piece.xbc.data += begin * piece.xbc.stride;
    piece.dt.data += begin * piece.dt.stride;
    piece.z.data += begin * piece.z.stride;
    piece.state = state.data();
    piece.y = y.data();
    ASSERT_OK(hxq_ssd(context.get(), &piece));
    const auto from = whole.begin() + begin * SsdCase::kInner;
    EXPECT_LT(relative_error(y, std::vector<float>(from, from + count * SsdCase::kInner)), 1e-5);
  }
}

TEST(Ssd, GradientsAreSlopes) {
  SsdCase s;
  const std::vector<float> g = random_floats(2 * 19 * SsdCase::kInner, 9);
  std::vector<std::vector<float>> out;
  for (const auto& input : s.inputs) out.emplace_back(input.size());
  const hxq_ssd_gradients gradients = {.g = g.data(),
                                       .dxbc = out[0].data(),
                                       .ddt = out[1].data(),
                                       .dz = out[2].data(),
                                       .da_log = out[3].data(),
                                       .dd = out[4].data(),
                                       .ddt_bias = out[5].data()};
  ASSERT_OK(hxq_ssd_gradient(make_context().get(), &s.args, &gradients));
  expect_gradients([&](const auto& in) { return ssd(s.sizes, in); }, s.inputs, g, out);
}

}  // namespace
}  // namespace hxq::testing
