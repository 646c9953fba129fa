#include <algorithm>

#include "capi_test_support.h"

namespace hxq::testing {
namespace {

constexpr int64_t kHidden = 32;
constexpr int64_t kInner = 48;
constexpr int64_t kRank = 4;
constexpr int64_t kState = 8;
constexpr int64_t kWidth = 4;
constexpr int64_t kBatch = 2;

/// A matrix of random indices, without outliers.
struct Projection {
  std::vector<float> codebook = random_floats(16, 1);
  std::vector<uint8_t> indices;
  MatrixHandle handle;

  Projection(int64_t rows, int64_t cols, uint32_t seed) {
    std::mt19937 random(seed);
    for (float& level : codebook) level *= 0.2f;
    for (int64_t i = 0; i < rows * cols; ++i) indices.push_back(static_cast<uint8_t>(random() % 16));
    const hxq_tensor parts[] = {tensor("codebook", HXQ_F32, {16}, codebook.data()),
                                tensor("indices", HXQ_U8, {rows, cols}, indices.data())};
    hxq_matrix* made = nullptr;
    EXPECT_OK(hxq_matrix_create("p", parts, 2, rows, cols, &made));
    handle.reset(made);
  }
};

class MambaMixers : public ::testing::Test {
 protected:
  Projection in_{2 * kInner, kHidden, 1};
  Projection x_{kRank + 2 * kState, kInner, 2};
  Projection dt_{kInner, kRank, 3};
  Projection out_{kHidden, kInner, 4};
  std::vector<float> in_bias_ = random_floats(2 * kInner, 5);
  std::vector<float> dt_bias_ = random_floats(kInner, 6);
  std::vector<float> out_bias_ = random_floats(kHidden, 7);
  std::vector<float> filter_ = random_floats(kInner * kWidth, 8);
  std::vector<float> conv_bias_ = random_floats(kInner, 9);
  std::vector<float> a_ = std::vector<float>(kState * kInner, -0.7f);
  std::vector<float> d_ = random_floats(kInner, 10);
  ContextHandle context_ = make_context();
  hxq_mamba_mixer mixer_ = {.in_proj = in_.handle.get(),
                            .x_proj = x_.handle.get(),
                            .dt_proj = dt_.handle.get(),
                            .out_proj = out_.handle.get(),
                            .in_proj_bias = in_bias_.data(),
                            .dt_bias = dt_bias_.data(),
                            .out_proj_bias = out_bias_.data(),
                            .conv_weight = filter_.data(),
                            .conv_bias = conv_bias_.data(),
                            .a = a_.data(),
                            .d = d_.data(),
                            .width = kWidth,
                            .state_size = kState};

  std::vector<float> product(const Projection& projection, const float* x, int64_t stride, int64_t rows, int64_t out,
                             const float* bias) {
    std::vector<float> y(rows * out);
    const hxq_linear_args args = {
        .tokens = rows, .x = {x, HXQ_F32, stride}, .y = {y.data(), HXQ_F32, 0}, .bias = bias, .precision = HXQ_EXACT};
    EXPECT_OK(hxq_linear(context_.get(), projection.handle.get(), &args));
    return y;
  }

  /// The same by the interface's single operations, one sequence; states as the mixer's.
  std::vector<float> by_parts(const float* x, int64_t tokens, float* conv_state, float* ssm_state) {
    const std::vector<float> xz = product(in_, x, 0, tokens, 2 * kInner, in_bias_.data());
    std::vector<float> u(tokens * kInner);
    const hxq_conv_args conv = {.batch = 1,
                                .tokens = tokens,
                                .channels = kInner,
                                .width = kWidth,
                                .x = {xz.data(), 2 * kInner},
                                .weight = filter_.data(),
                                .bias = conv_bias_.data(),
                                .state = conv_state,
                                .state_rows = kWidth,
                                .y = u.data()};
    EXPECT_OK(hxq_causal_conv1d(context_.get(), &conv));
    constexpr int64_t kDbc = kRank + 2 * kState;
    const std::vector<float> dbc = product(x_, u.data(), 0, tokens, kDbc, nullptr);
    const std::vector<float> dt = product(dt_, dbc.data(), kDbc, tokens, kInner, nullptr);
    std::vector<float> y(tokens * kInner);
    const hxq_scan_args scan = {.batch = 1,
                                .tokens = tokens,
                                .channels = kInner,
                                .state_size = kState,
                                .u = u.data(),
                                .dt = dt.data(),
                                .dt_bias = dt_bias_.data(),
                                .b = {dbc.data() + kRank, kDbc},
                                .c = {dbc.data() + kRank + kState, kDbc},
                                .z = {xz.data() + kInner, 2 * kInner},
                                .a = a_.data(),
                                .d = d_.data(),
                                .state = ssm_state,
                                .y = y.data()};
    EXPECT_OK(hxq_selective_scan(context_.get(), &scan));
    return product(out_, y.data(), 0, tokens, kHidden, out_bias_.data());
  }
};

TEST_F(MambaMixers, AreTheirOperationsInTurn) {
  std::vector<float> conv(kBatch * kWidth * kInner);
  std::vector<float> ssm(kBatch * kState * kInner);
  std::vector<float> expected_conv = conv;
  std::vector<float> expected_ssm = ssm;
  for (const int64_t tokens : {7, 1, 2, 1, 4}) {  // shorter and longer than the filter
    const std::vector<float> x = random_floats(kBatch * tokens * kHidden, static_cast<uint32_t>(tokens));
    std::vector<float> y(x.size());
    const hxq_mamba_mixer_args args = {.batch = kBatch,
                                       .tokens = tokens,
                                       .x = x.data(),
                                       .conv_state = conv.data(),
                                       .ssm_state = ssm.data(),
                                       .y = y.data(),
                                       .phase = tokens == 1 ? HXQ_DECODE : HXQ_PREFILL,
                                       .precision = HXQ_EXACT};
    ASSERT_OK(hxq_mamba_mixer_forward(context_.get(), &mixer_, &args));
    std::vector<float> expected;
    for (int64_t s = 0; s < kBatch; ++s) {
      const std::vector<float> one =
          by_parts(x.data() + s * tokens * kHidden, tokens, expected_conv.data() + s * kWidth * kInner,
                   expected_ssm.data() + s * kState * kInner);
      expected.insert(expected.end(), one.begin(), one.end());
    }
    EXPECT_LT(relative_error(y, expected), 1e-5) << tokens << " tokens";
    EXPECT_LT(relative_error(conv, expected_conv), 1e-5) << tokens << " tokens";
    EXPECT_LT(relative_error(ssm, expected_ssm), 1e-5) << tokens << " tokens";
  }
}

TEST_F(MambaMixers, RefuseWhatDoesNotFit) {
  const std::vector<float> x = random_floats(3 * kHidden, 1);
  std::vector<float> state(kWidth * kInner + kState * kInner, -7.0f);
  std::vector<float> y(3 * kHidden, -7.0f);
  const std::vector<float> untouched_state = state;
  const std::vector<float> untouched = y;
  const hxq_mamba_mixer_args good = {.batch = 1,
                                     .tokens = 3,
                                     .x = x.data(),
                                     .conv_state = state.data(),
                                     .ssm_state = state.data() + kWidth * kInner,
                                     .y = y.data()};
  const auto refused = [&](const std::string& part, auto change) {
    hxq_mamba_mixer mixer = mixer_;
    hxq_mamba_mixer_args args = good;
    change(mixer, args);
    expect_invalid(hxq_mamba_mixer_forward(context_.get(), &mixer, &args), part);
    EXPECT_EQ(y, untouched);
    EXPECT_EQ(state, untouched_state);
  };
  refused("x_proj is null", [](auto& m, auto&) { m.x_proj = nullptr; });
  refused("conv_weight is null", [](auto& m, auto&) { m.conv_weight = nullptr; });
  refused("a is null", [](auto& m, auto&) { m.a = nullptr; });
  refused("width is 0", [](auto& m, auto&) { m.width = 0; });
  refused("state_size is -8", [](auto& m, auto&) { m.state_size = -8; });
  refused("x_proj is [20, 48], the others ask for [22, 48]", [](auto& m, auto&) { m.state_size = 9; });
  refused("in_proj is", [&](auto& m, auto&) { m.in_proj = out_.handle.get(); });
  refused("y is null", [](auto&, auto& a) { a.y = nullptr; });
  refused("conv_state is null", [](auto&, auto& a) { a.conv_state = nullptr; });
  refused("batch is 0", [](auto&, auto& a) { a.batch = 0; });
  refused("too many rows", [](auto&, auto& a) { a.tokens = int64_t{1} << 40; });
  refused("phase is 5", [](auto&, auto& a) { a.phase = 5; });
  refused("precision is 5", [](auto&, auto& a) { a.precision = 5; });
  expect_invalid(hxq_mamba_mixer_forward(nullptr, &mixer_, &good), "context is null");
  expect_invalid(hxq_mamba_mixer_forward(context_.get(), nullptr, &good), "mixer is null");
  expect_invalid(hxq_mamba_mixer_forward(context_.get(), &mixer_, nullptr), "args is null");
}

}  // namespace
}  // namespace hxq::testing
