// Operations along sequences on the GPU against the recurrences in double: ragged batches, segments without rows, rows
// apart from each other, every type of activations, outputs and states poisoned or carried on.

#include "kernels/cuda/sequence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/cuda/sequence_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

struct Case {
  std::vector<int> lengths;
  DType dtype = DType::f32;
  int64_t gap = 0;
};

const std::vector<Case> kCases = {{{1}},
                                  {{1, 1, 1}, DType::bf16, 3},
                                  {{7, 0, 1, 40}, DType::f32, 1},
                                  {{8, 0, 3}, DType::f32},
                                  {{2, 7}, DType::f16, 2},
                                  {{9}, DType::f32},
                                  {{64, 65, 3}, DType::f16, 2},
                                  {{200, 1}, DType::f32},
                                  {{333}, DType::bf16},
                                  {{300, 5, 700, 129}, DType::f32}};

std::string name_of_case(const Case& c) {
  return std::to_string(c.lengths.size()) + " segments, first of " + std::to_string(c.lengths[0]) + " " +
         std::string(name_of(c.dtype));
}

TEST(CudaSequence, NormalizesRows) {
  HXQ_NEEDS_GPU();
  struct Gaps {
    int64_t x, z, h;
  };
  // The last three are read four elements at a time.
  for (const auto& [dtype, gap] : {std::pair{DType::f32, Gaps{3, 1, 2}},
                                   {DType::bf16, Gaps{3, 1, 2}},
                                   {DType::f16, Gaps{3, 1, 2}},
                                   {DType::f32, Gaps{4, 0, 8}},
                                   {DType::bf16, Gaps{4, 0, 8}},
                                   {DType::f16, Gaps{4, 0, 8}}}) {
    for (const auto& [dim, groups] :
         {std::pair<int64_t, int64_t>{1, 1}, {48, 1}, {770, 1}, {4096, 1}, {512, 8}, {9000, 2}}) {
      for (const bool gated : {false, true}) {
        for (const bool added : {false, true}) {
          const int64_t tokens = 5;
          Random random(2);
          const auto count = static_cast<size_t>(tokens * dim);
          const auto x = random.normals(count, dtype), z = random.normals(count, dtype), h = random.normals(count);
          const auto weight = random.normals(static_cast<size_t>(dim));
          const DeviceRows dx(x, tokens, dim, gap.x, dtype), dz(z, tokens, dim, gap.z, dtype),
              dh(h, tokens, dim, gap.h, DType::f32), dy(tokens, dim, 4, dtype);
          const DeviceArray<float> dw(weight);
          HXQ_EXPECT_OK(rms_norm({.x = dx.input(),
                                  .z = gated ? dz.input() : Input{},
                                  .weight = dw.data(),
                                  .y = dy.output(),
                                  .tokens = tokens,
                                  .dim = dim,
                                  .groups = groups,
                                  .eps = 1e-5f,
                                  .residual = added ? dh.output() : Output{}},
                                 nullptr));
          expect_finished();
          Expected expected;
          const int64_t size = dim / groups;
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t g = 0; g < groups; ++g) {
              std::vector<double> v;
              double sum = 0;
              for (int64_t i = 0; i < size; ++i) {
                const auto at = static_cast<size_t>(t * dim + g * size + i);
                double value = added ? static_cast<double>(x[at] + h[at]) : x[at];
                if (gated) value *= silu_of(z[at]);
                v.push_back(value);
                sum += value * value;
              }
              for (int64_t i = 0; i < size; ++i) {
                const double y = v[static_cast<size_t>(i)] / std::sqrt(sum / static_cast<double>(size) + 1e-5f) *
                                 weight[static_cast<size_t>(g * size + i)];
                expected.y.push_back(y);
                expected.size.push_back(std::fabs(y));
              }
            }
          }
          expect_close(dy.values(), expected.y, expected.size, 2e-6, dtype,
                       to_string(Shape{dim, groups, gated, added}));
          if (added) {
            const auto sums = dh.values();
            for (size_t i = 0; i < count; ++i) EXPECT_EQ(sums[i], x[i] + h[i]);
          }
        }
      }
    }
  }
}

TEST(CudaSequence, Convolves) {
  HXQ_NEEDS_GPU();
  for (const Case& test : kCases) {
    for (const auto& [width, past] : {std::pair<int64_t, int64_t>{1, 0}, {2, 1}, {4, 3}, {16, 15}, {4, 32}, {1, 2}}) {
      const int64_t channels = 150;
      Random random(3);
      TestBatch batch(test.lengths, static_cast<size_t>(past * channels), random);
      const auto x = random.normals(static_cast<size_t>(batch.rows * channels), test.dtype);
      const auto weight = random.normals(static_cast<size_t>(width * channels)),
                 bias = random.normals(static_cast<size_t>(channels));
      const DeviceRows dx(x, batch.rows, channels, test.gap, test.dtype),
          dy(batch.rows, channels, test.gap, test.dtype);
      const DeviceArray<float> dw(weight), db(bias);
      HXQ_EXPECT_OK(causal_conv1d_silu({.batch = batch.batch(),
                                        .x = dx.input(),
                                        .y = dy.output(),
                                        .channels = channels,
                                        .width = width,
                                        .weight = dw.data(),
                                        .bias = db.data(),
                                        .states = batch.pointers.data(),
                                        .state_rows = past},
                                       nullptr));
      expect_finished();
      Expected expected;
      for (size_t s = 0; s < batch.segments.size(); ++s) {
        const RowRange segment = batch.segments[s];
        const auto input = [&](int64_t t, int64_t c) {
          return t < 0 ? batch.start[s][static_cast<size_t>((t + past) * channels + c)]
                       : x[static_cast<size_t>((segment.begin + t) * channels + c)];
        };
        for (int64_t t = 0; t < segment.end - segment.begin; ++t) {
          for (int64_t c = 0; c < channels; ++c) {
            double sum = bias[static_cast<size_t>(c)], size = std::fabs(sum);
            for (int64_t j = 0; j < width; ++j) {
              const double term =
                  static_cast<double>(weight[static_cast<size_t>(j * channels + c)]) * input(t - width + 1 + j, c);
              sum += term;
              size += std::fabs(term);
            }
            expected.y.push_back(silu_of(sum));
            expected.size.push_back(size);
          }
        }
        const auto state = batch.state[s].values();
        for (int64_t j = 0; j < past; ++j) {
          for (int64_t c = 0; c < channels; ++c)
            EXPECT_EQ(state[static_cast<size_t>(j * channels + c)], input(segment.end - segment.begin - past + j, c));
        }
      }
      expect_rows(dy, channels, batch, expected, 2e-6, test.dtype, name_of_case(test));
    }
  }
}

/// Rows that are aligned are read in fours; many channels are many blocks.
struct ScanShape {
  int64_t channels, states;
  int64_t gap, bc_gap;  ///< elements between rows, and between those of B and C
  bool has_bias = true;
  bool in_place = false;  ///< y is u
  bool half_y = false;    ///< y is F16 whatever the inputs are
};
const std::vector<ScanShape> kScanShapes = {{70, 3, 5, 7},
                                            {70, 16, 0, 0, false},
                                            {72, 16, 4, 4},
                                            {72, 12, 0, 8, true, true},
                                            {70, 40, 7, 7, true, true},
                                            {72, 40, 8, 0, false},
                                            {72, 6, 4, 2},
                                            {72, 16, 1, 4},
                                            {72, 16, 4, 1},
                                            {72, 16, 4, 4, true, false, true},
                                            {1612, 16, 4, 4}};

TEST(CudaSequence, Scans) {
  HXQ_NEEDS_GPU();
  for (const Case& test : kCases) {
    for (const auto& [channels, states, gap, bc_gap, has_bias, in_place, half_y] : kScanShapes) {
      if (channels > 1000 && test.lengths.size() > 2) continue;
      const DType y_type = half_y ? DType::f16 : test.dtype;
      Random random(4);
      TestBatch batch(test.lengths, static_cast<size_t>(states * channels), random);
      const auto count = static_cast<size_t>(batch.rows * channels);
      auto u = random.normals(count, test.dtype), dt = random.normals(count, test.dtype, 2),
           z = random.normals(count, test.dtype);
      auto b = random.normals(static_cast<size_t>(batch.rows * states), test.dtype),
           c = random.normals(static_cast<size_t>(batch.rows * states), test.dtype);
      for (const RowRange& segment : batch.segments) {  // what lies behind a segment must not matter
        for (auto* rows : {&u, &dt, &z}) std::fill_n(rows->begin() + segment.end * channels, channels, NAN);
        for (auto* rows : {&b, &c}) std::fill_n(rows->begin() + segment.end * states, states, NAN);
      }
      auto a = random.normals(static_cast<size_t>(states * channels));
      for (float& value : a) value = -std::exp(value);
      const auto d = random.normals(static_cast<size_t>(channels));
      auto bias = random.normals(static_cast<size_t>(channels));
      if (!has_bias) std::fill(bias.begin(), bias.end(), 0.0f);
      const DeviceRows du(u, batch.rows, channels, gap, test.dtype), ddt(dt, batch.rows, channels, gap, test.dtype),
          dz(z, batch.rows, channels, gap, test.dtype), db(b, batch.rows, states, bc_gap, test.dtype),
          dc(c, batch.rows, states, bc_gap, test.dtype), own_y(batch.rows, channels, gap, y_type);
      const DeviceRows& dy = in_place ? du : own_y;
      const DeviceArray<float> da(a), dd(d), dbias(bias);
      HXQ_EXPECT_OK(selective_scan({.batch = batch.batch(),
                                    .u = du.input(),
                                    .dt = ddt.input(),
                                    .dt_bias = has_bias ? dbias.data() : nullptr,
                                    .b = db.input(),
                                    .c = dc.input(),
                                    .z = dz.input(),
                                    .a = da.data(),
                                    .d = dd.data(),
                                    .states = batch.pointers.data(),
                                    .y = dy.output(),
                                    .channels = channels,
                                    .state_size = states},
                                   nullptr));
      expect_finished();
      Expected expected, expected_state;
      std::vector<float> got_state;
      for (size_t s = 0; s < batch.segments.size(); ++s) {
        const RowRange segment = batch.segments[s];
        std::vector<double> h(batch.start[s].begin(), batch.start[s].end()), h_size(h.size());
        for (size_t i = 0; i < h.size(); ++i) h_size[i] = std::fabs(h[i]);
        for (int64_t t = 0; t < segment.end - segment.begin; ++t) {
          for (int64_t ch = 0; ch < channels; ++ch) {
            const auto at = static_cast<size_t>((segment.begin + t) * channels + ch);
            const double delta = softplus_of(static_cast<double>(dt[at]) + bias[static_cast<size_t>(ch)]);
            double sum = static_cast<double>(d[static_cast<size_t>(ch)]) * u[at], size = std::fabs(sum);
            for (int64_t n = 0; n < states; ++n) {
              const auto i = static_cast<size_t>(n * channels + ch),
                         bc = static_cast<size_t>((segment.begin + t) * states + n);
              const double decay = std::exp(delta * a[i]), in = delta * b[bc] * u[at];
              h[i] = decay * h[i] + in;
              h_size[i] = decay * h_size[i] + std::fabs(in);
              sum += h[i] * c[bc];
              size += std::fabs(h_size[i] * c[bc]);
            }
            expected.y.push_back(sum * silu_of(z[at]));
            expected.size.push_back(size * std::fabs(silu_of(z[at])));
          }
        }
        expected_state.y.insert(expected_state.y.end(), h.begin(), h.end());
        expected_state.size.insert(expected_state.size.end(), h_size.begin(), h_size.end());
        const auto state = batch.state[s].values();
        got_state.insert(got_state.end(), state.begin(), state.end());
      }
      expect_rows(dy, channels, batch, expected, 1e-5, y_type, name_of_case(test));
      expect_close(got_state, expected_state.y, expected_state.size, 1e-5, DType::f32,
                   "states of " + name_of_case(test));
    }
  }
}

}  // namespace
}  // namespace hxq::cuda
