// A step of Mamba between its projections on the GPU against the same in double.

#include "kernels/cuda/mamba_step.h"

#include <gtest/gtest.h>

#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/sequence_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

struct Case {
  int64_t channels, rank, state_size, width, past;
  std::vector<int> lengths;  ///< of the segments: 0 or 1
  int32_t low_rank = 0;
  double outliers = 0.003;  ///< of x_proj, and three times as many of dt_proj; 0: no list of any
  int32_t dt_low_rank = 0;
};

/// A row's y and states after it, each with what its rounding is in proportion to: errors of sums in float grow with
/// the sum of the sizes of their terms, and pass through everything that is made of them.
struct Step {
  std::vector<double> y = {}, y_size = {}, h, h_size;
};

Step step_in_double(const Case& test, const TestMatrix& x_proj, const TestMatrix& dt_proj, const std::vector<double>& u,
                    const std::vector<float>& z, const std::vector<float>& a, const std::vector<float>& d,
                    const std::vector<float>& dt_bias, const std::vector<float>& start) {
  const Product dbc = multiply_rows(x_proj.decoded, x_proj.rows, x_proj.cols, u, 1, {}, {});
  const auto rank = static_cast<size_t>(test.rank), states = static_cast<size_t>(test.state_size);
  const auto channels = static_cast<size_t>(test.channels);
  Step step{.h = std::vector<double>(states * channels), .h_size = std::vector<double>(states * channels)};
  for (size_t c = 0; c < channels; ++c) {
    double dt = dt_bias[c], dt_size = std::fabs(dt);
    for (size_t j = 0; j < rank; ++j) {
      const double w = dt_proj.decoded[c * rank + j];
      dt += w * dbc.y[j];
      dt_size += std::fabs(w) * dbc.size[j];
    }
    const double delta = softplus_of(dt);
    double sum = d[c] * u[c], size = std::fabs(sum);
    for (size_t n = 0; n < states; ++n) {
      const size_t at = n * channels + c;
      const double kept = std::exp(delta * a[at]) * start[at], added = delta * dbc.y[rank + n] * u[c];
      step.h[at] = kept + added;
      step.h_size[at] = std::fabs(kept) * (1 + std::fabs(a[at]) * (dt_size + delta)) +
                        (dt_size + delta) * std::fabs(u[c]) * dbc.size[rank + n];
      const double coefficient = dbc.y[rank + states + n];
      sum += step.h[at] * coefficient;
      size += step.h_size[at] * std::fabs(coefficient) + std::fabs(step.h[at]) * dbc.size[rank + states + n];
    }
    step.y.push_back(sum * silu_of(z[c]));
    step.y_size.push_back(size * std::fabs(silu_of(z[c])) + 1e-6);
  }
  return step;
}

TEST(CudaMambaStep, IsWhatItsPartsAreInDouble) {
  HXQ_NEEDS_GPU();
  const std::vector<int> many = {1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1};
  const std::vector<Case> cases = {{1536, 48, 16, 4, 3, {1}},
                                   {1536, 48, 16, 4, 3, {1, 0, 1, 1}},
                                   {1536, 48, 16, 4, 3, many},
                                   {2048, 64, 16, 4, 3, {1}, 1},
                                   {2048, 64, 16, 4, 3, many, 2},
                                   {96, 8, 16, 4, 3, {1, 1}},
                                   {100, 4, 5, 3, 7, {1, 0}},
                                   {64, 4, 1, 1, 0, {1}},
                                   {3072, 96, 16, 4, 3, {1, 1, 1}, 2},
                                   {1536, 4, 16, 4, 3, {1, 1}},
                                   {1028, 4, 16, 4, 3, {1}},
                                   {64, 8, 4, 2, 1, {1}, 0, 0},
                                   {1536, 48, 16, 4, 3, {1, 0, 1}, 0, 0.003, 2},
                                   {100, 4, 5, 3, 7, {1}, 1, 0, 3}};
  for (const Case& test : cases) {
    Random random(static_cast<uint32_t>(test.channels));
    const auto channels = static_cast<size_t>(test.channels);
    const auto states = static_cast<size_t>(test.state_size * test.channels);
    TestBatch past(test.lengths, static_cast<size_t>(test.past) * channels, random);
    TestBatch scan(test.lengths, states, random);
    const TestMatrix x_proj = make_matrix({.rows = test.rank + 2 * test.state_size,
                                           .cols = test.channels,
                                           .outliers = test.outliers,
                                           .rank = test.low_rank,
                                           .size = 0.1f});
    const TestMatrix dt_proj = make_matrix({.rows = test.channels,
                                            .cols = test.rank,
                                            .k = 200,
                                            .outliers = 3 * test.outliers,
                                            .rank = test.dt_low_rank,
                                            .size = 0.3f});
    const DeviceMatrix device_x_proj(x_proj), device_dt_proj(dt_proj);
    const auto x = random.normals(static_cast<size_t>(past.rows) * channels),
               z = random.normals(static_cast<size_t>(past.rows) * channels);
    const auto filter = random.normals(static_cast<size_t>(test.width) * channels), bias = random.normals(channels);
    auto a = random.normals(states);
    for (float& value : a) value = -std::fabs(value);
    const auto d = random.normals(channels), dt_bias = random.normals(channels);
    const DeviceRows dx(x, past.rows, test.channels, 5, DType::f32), dz(z, past.rows, test.channels, 2, DType::f32),
        dy(past.rows, test.channels, 1, DType::f32);
    const DeviceArray<float> df(filter), dbias(bias), da(a), dd(d), ddt(dt_bias);
    const MambaStepArgs args{.batch = past.batch(),
                             .conv = {.x = dx.input(),
                                      .channels = test.channels,
                                      .width = test.width,
                                      .weight = df.data(),
                                      .bias = dbias.data(),
                                      .states = past.pointers.data(),
                                      .state_rows = test.past},
                             .x_proj = device_x_proj.weight(),
                             .dt_proj = device_dt_proj.weight(),
                             .scan = {.dt_bias = ddt.data(),
                                      .z = dz.input(),
                                      .a = da.data(),
                                      .d = dd.data(),
                                      .states = scan.pointers.data(),
                                      .y = dy.output(),
                                      .channels = test.channels,
                                      .state_size = test.state_size}};
    if (current_capability() < 90) {
      EXPECT_FALSE(supports_mamba_step(args));
      GTEST_SKIP() << "no clusters";
    }
    ASSERT_TRUE(supports_mamba_step(args)) << test.channels;
    HXQ_EXPECT_OK(mamba_step(args, nullptr));
    expect_finished();
    constexpr double kBound = 2e-6;
    Expected expected;
    for (size_t s = 0; s < past.segments.size(); ++s) {
      const auto row = static_cast<size_t>(past.segments[s].begin) * channels;
      const bool is_there = test.lengths[s] == 1;
      std::vector<double> u;
      std::vector<float> inputs = past.start[s];  // the state, then the token
      inputs.insert(inputs.end(), x.begin() + static_cast<int64_t>(row),
                    x.begin() + static_cast<int64_t>(row + channels));
      for (size_t c = 0; c < channels; ++c) {
        double sum = bias[c];
        for (int64_t j = 0; j < test.width; ++j) {
          sum += static_cast<double>(filter[static_cast<size_t>(j) * channels + c]) *
                 inputs[static_cast<size_t>(test.past - test.width + 1 + j) * channels + c];
        }
        u.push_back(silu_of(sum));
      }
      const std::vector<float> kept(inputs.begin() + static_cast<int64_t>(is_there ? channels : 0),
                                    inputs.end() - static_cast<int64_t>(is_there ? 0 : channels));
      EXPECT_EQ(past.state[s].values(), kept) << test.channels;
      const std::vector<float> states_after = scan.state[s].values();
      if (!is_there) {
        EXPECT_EQ(states_after, scan.start[s]);
        continue;
      }
      const std::vector<float> own_z(z.begin() + static_cast<int64_t>(row),
                                     z.begin() + static_cast<int64_t>(row + channels));
      const Step step = step_in_double(test, x_proj, dt_proj, u, own_z, a, d, dt_bias, scan.start[s]);
      expected.y.insert(expected.y.end(), step.y.begin(), step.y.end());
      expected.size.insert(expected.size.end(), step.y_size.begin(), step.y_size.end());
      expect_close(states_after, step.h, step.h_size, kBound, DType::f32, "states");
    }
    expect_rows(dy, test.channels, past, expected, kBound, DType::f32, std::to_string(test.channels) + " channels");
  }
}

TEST(CudaMambaStep, LeavesOthersToTheirParts) {
  HXQ_NEEDS_GPU();
  const TestMatrix x_proj = make_matrix({.rows = 192, .cols = 5120}),
                   dt_proj = make_matrix({.rows = 5120, .cols = 160});
  const DeviceMatrix device_x_proj(x_proj), device_dt_proj(dt_proj);
  const MambaStepArgs args{.batch = {.count = 1, .max_rows = 1, .total_rows = 1},
                           .conv = {.channels = 5120, .width = 4, .state_rows = 3},
                           .x_proj = device_x_proj.weight(),
                           .dt_proj = device_dt_proj.weight(),
                           .scan = {.channels = 5120, .state_size = 16}};
  EXPECT_FALSE(supports_mamba_step(args));
  EXPECT_EQ(mamba_step(args, nullptr), Status::invalid_value);
  const TestMatrix small_x_proj = make_matrix({.rows = 16, .cols = 64}),
                   small_dt_proj = make_matrix({.rows = 64, .cols = 8});
  const DeviceMatrix device_small_x_proj(small_x_proj), device_small_dt_proj(small_dt_proj);
  MambaStepArgs small{.batch = {.count = 1, .max_rows = 1, .total_rows = 1},
                      .conv = {.channels = 64, .width = 4, .state_rows = 3},
                      .x_proj = device_small_x_proj.weight(),
                      .dt_proj = device_small_dt_proj.weight(),
                      .scan = {.channels = 64, .state_size = 4}};
  if (current_capability() < 90) GTEST_SKIP() << "no clusters";
  EXPECT_TRUE(supports_mamba_step(small));
  small.scan.z.dtype = DType::bf16;
  EXPECT_FALSE(supports_mamba_step(small));
  small.scan.z.dtype = DType::f32;
  small.batch.count = 1000;
  EXPECT_FALSE(supports_mamba_step(small)) << "many sequences";
}

}  // namespace
}  // namespace hxq::cuda
