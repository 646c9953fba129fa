// The gradient of the selective scan on the GPU against the recurrence in double.

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/sequence_gradients.h"
#include "kernels/cuda/sequence_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

struct Case {
  int32_t batch = 1, tokens = 1;
  int64_t channels = 1, states = 1;
  int64_t gap = 0;  ///< between rows of B, C and z
  bool has_bias = true;
};

std::string to_string(const Case& c) {
  return std::to_string(c.batch) + " sequences of " + std::to_string(c.tokens) + " tokens, " +
         std::to_string(c.channels) + " channels, " + std::to_string(c.states) + " states";
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

/// Sums, with those of the absolute values of their terms.
struct Sums {
  std::vector<double> value, size;

  explicit Sums(size_t count) : value(count), size(count) {}
  void add(size_t i, double term, double term_size) { value[i] += term, size[i] += std::fabs(term_size); }
};

struct Inputs {
  std::vector<float> u, dt, z, g, b, c, a, d, bias;

  explicit Inputs(const Case& test) {
    Random random(3);
    const auto rows = static_cast<size_t>(test.batch * test.tokens), channels = static_cast<size_t>(test.channels),
               states = static_cast<size_t>(test.states);
    for (auto* values : {&u, &dt, &z, &g}) *values = random.normals(rows * channels);
    for (auto* values : {&b, &c}) *values = random.normals(rows * states);
    a = random.normals(states * channels);
    for (float& value : a) value = -std::exp(value);
    d = random.normals(channels);
    bias = test.has_bias ? random.normals(channels) : std::vector<float>(channels);
  }
};

struct Gradients {
  Sums du, ddt, dz, db, dc, da_log, dd, dbias;

  Gradients(const Case& test, const Inputs& in)
      : du(in.u.size()),
        ddt(in.u.size()),
        dz(in.u.size()),
        db(in.b.size()),
        dc(in.b.size()),
        da_log(in.a.size()),
        dd(in.d.size()),
        dbias(in.d.size()) {
    for (int64_t s = 0; s < test.batch; ++s) {
      for (int64_t channel = 0; channel < test.channels; ++channel) add(test, in, s * test.tokens, channel);
    }
  }

 private:
  /// One channel of a sequence.
  void add(const Case& test, const Inputs& in, int64_t first_row, int64_t channel) {
    const auto states = static_cast<size_t>(test.states), tokens = static_cast<size_t>(test.tokens),
               channels = static_cast<size_t>(test.channels), c = static_cast<size_t>(channel);
    std::vector<double> h((tokens + 1) * states), size(h), carry(states), carry_size(states);
    const auto wide = [&](size_t t) { return (static_cast<size_t>(first_row) + t) * channels + c; };
    const auto narrow = [&](size_t t, size_t n) { return (static_cast<size_t>(first_row) + t) * states + n; };
    const auto delta_of = [&](size_t t) { return softplus_of(double{in.dt[wide(t)]} + in.bias[c]); };
    for (size_t t = 0; t < tokens; ++t) {
      const double delta = delta_of(t), u = in.u[wide(t)], z = in.z[wide(t)];
      double y = in.d[c] * u, y_size = std::fabs(y);
      for (size_t n = 0; n < states; ++n) {
        const size_t now = (t + 1) * states + n, before = t * states + n;
        const double decay = std::exp(delta * in.a[n * channels + c]), added = delta * u * in.b[narrow(t, n)];
        h[now] = decay * h[before] + added;
        size[now] = decay * size[before] + std::fabs(added);
        y += h[now] * in.c[narrow(t, n)];
        y_size += size[now] * std::fabs(in.c[narrow(t, n)]);
      }
      const double gate = sigmoid_of(z), g = in.g[wide(t)];
      dz.add(wide(t), g * y * gate * (1 + z * (1 - gate)), g * y_size * gate * (1 + std::fabs(z * (1 - gate))));
    }
    for (size_t t = tokens; t-- > 0;) {
      const double delta = delta_of(t), u = in.u[wide(t)], dp = in.g[wide(t)] * silu_of(in.z[wide(t)]),
                   slope = sigmoid_of(double{in.dt[wide(t)]} + in.bias[c]);
      du.add(wide(t), dp * in.d[c], dp * in.d[c]);
      dd.add(c, dp * u, dp * u);
      for (size_t n = 0; n < states; ++n) {
        const size_t now = (t + 1) * states + n, before = t * states + n, bc = narrow(t, n);
        const double rate = in.a[n * channels + c], decay = std::exp(delta * rate), b = in.b[bc];
        const double dh = carry[n] + dp * in.c[bc], dh_size = carry_size[n] + std::fabs(dp * in.c[bc]);
        const double slope_of_delta = decay * rate * h[before] + u * b,
                     slope_size = std::fabs(decay * rate) * size[before] + std::fabs(u * b);
        du.add(wide(t), dh * delta * b, dh_size * delta * b);
        ddt.add(wide(t), dh * slope_of_delta * slope, dh_size * slope_size * slope);
        dbias.add(c, dh * slope_of_delta * slope, dh_size * slope_size * slope);
        db.add(bc, dh * delta * u, dh_size * delta * u);
        dc.add(bc, dp * h[now], dp * size[now]);
        da_log.add(c * states + n, dh * delta * rate * decay * h[before],
                   dh_size * delta * rate * decay * size[before]);
        carry[n] = dh * decay;
        carry_size[n] = dh_size * decay;
      }
    }
  }
};

void check(const Case& test) {
  const Inputs in(test);
  const int64_t rows = int64_t{test.batch} * test.tokens;
  const DeviceArray<float> u(in.u), dt(in.dt), g(in.g), a(in.a), d(in.d), bias(in.bias);
  const DeviceRows b(in.b, rows, test.states, test.gap, DType::f32), c(in.c, rows, test.states, test.gap, DType::f32),
      z(in.z, rows, test.channels, test.gap, DType::f32);
  const DeviceArray<float> du(in.u.size()), ddt(in.u.size()), dz(in.u.size()), db(in.b.size()), dc(in.b.size()),
      da_log(in.a.size()), dd(in.d.size()), dbias(in.d.size());
  ScanGradientArgs args{.batch = test.batch,
                        .tokens = test.tokens,
                        .channels = test.channels,
                        .state_size = test.states,
                        .u = u.data(),
                        .dt = dt.data(),
                        .dt_bias = test.has_bias ? bias.data() : nullptr,
                        .b = static_cast<const float*>(b.input().data),
                        .c = static_cast<const float*>(c.input().data),
                        .bc_stride = b.input().stride,
                        .z = static_cast<const float*>(z.input().data),
                        .z_stride = z.input().stride,
                        .a = a.data(),
                        .d = d.data(),
                        .g = g.data(),
                        .du = du.data(),
                        .ddt = ddt.data(),
                        .dz = dz.data(),
                        .db = db.data(),
                        .dc = dc.data(),
                        .da_log = da_log.data(),
                        .dd = dd.data(),
                        .ddt_bias = dbias.data()};
  const DeviceArray<std::byte> workspace(scan_gradient_workspace(args));
  args.workspace = {.data = workspace.data(), .bytes = workspace.size()};
  HXQ_EXPECT_OK(selective_scan_gradient(args, nullptr));
  expect_finished();
  const Gradients expected(test, in);
  const auto compare = [&](const DeviceArray<float>& got, const Sums& sums, const std::string& what) {
    expect_close(got.values(), sums.value, sums.size, 1e-5, DType::f32, what + " of " + to_string(test));
  };
  compare(du, expected.du, "du");
  compare(ddt, expected.ddt, "ddt");
  compare(dz, expected.dz, "dz");
  compare(db, expected.db, "db");
  compare(dc, expected.dc, "dc");
  compare(da_log, expected.da_log, "da_log");
  compare(dd, expected.dd, "dd");
  compare(dbias, expected.dbias, "ddt_bias");
}

TEST(CudaScanGradient, IsThatOfTheRecurrence) {
  HXQ_NEEDS_GPU();
  // A warp has 8 tokens, a run 32, and 16 runs are joined at a time.
  for (const int32_t tokens : {1, 2, 7, 8, 9, 31, 32, 33, 65, 300}) {
    for (const int64_t channels : {1, 3, 80, 130}) {
      check({.batch = tokens < 100 ? 3 : 1, .tokens = tokens, .channels = channels, .states = 16});
    }
  }
  for (const int64_t states : {1, 5, 17, 64}) {
    for (const bool has_bias : {false, true}) {
      check({.batch = 2, .tokens = 41, .channels = 67, .states = states, .gap = 3, .has_bias = has_bias});
    }
  }
  check({.batch = 2, .tokens = 1100, .channels = 33, .states = 3, .gap = 1});
}

TEST(CudaScanGradient, WithMoreBlocksThanRunAtOnce) {
  HXQ_NEEDS_GPU();
  check({.tokens = 700, .channels = 2000, .states = 16});
}

TEST(CudaScanGradient, OfNothingIsZero) {
  HXQ_NEEDS_GPU();
  check({.batch = 0, .tokens = 5, .channels = 3, .states = 2});
  check({.batch = 2, .tokens = 0, .channels = 3, .states = 2});
  check({.batch = 2, .tokens = 5, .channels = 0, .states = 2});
}

}  // namespace
}  // namespace hxq::cuda
