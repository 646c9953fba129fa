#include <fmt/format.h>

#include "kernels/cpu/generic_prepared.h"
#include "kernels/cpu_context.h"
#include "kernels/kernels_test_data.h"

namespace hxq::kernels::testing {
namespace {

/// y = W x + bias + y of a matrix that is multiplied through its decoder.
std::vector<float> product(const CpuMatrix& matrix, const std::vector<float>& x, const std::vector<float>& bias,
                           int64_t tokens, Phase phase, Target target, int threads) {
  std::vector<float> y(static_cast<size_t>(tokens * matrix.rows()), 0.5f);
  Scratch scratch(threads);
  run_on_cpu(threads, target, scratch, [&](const CpuContext& context) {
    matrix.linear({.x = x.data(),
                   .x_stride = matrix.cols(),
                   .y = y.data(),
                   .y_stride = matrix.rows(),
                   .tokens = tokens,
                   .phase = phase,
                   .bias = bias.data(),
                   .accumulate = true},
                  context);
  });
  return y;
}

class GenericMatrixTest : public ::testing::TestWithParam<Target> {};

TEST_P(GenericMatrixTest, MultipliesWhatTheDecoderGives) {
  // The second has several panels.
  for (const MatrixOptions& options : {MatrixOptions{.rows = 7, .cols = 50, .rank = 3, .channel_scales = true},
                                       MatrixOptions{.rows = 150, .cols = 8192}}) {
    const TestMatrix matrix(options);
    const cpu::GenericMatrix generic(std::make_unique<CodebookMatrix>(matrix.view));
    const std::vector<float> bias = normal_floats(options.rows, 3);
    for (const Phase phase : {Phase::decode, Phase::prefill}) {
      const int64_t tokens = phase == Phase::decode ? 2 : 11;
      SCOPED_TRACE(fmt::format("{} x {}, {} tokens", options.rows, options.cols, tokens));
      const std::vector<float> x = normal_floats(tokens * options.cols, 4);
      const std::vector<float> y = product(generic, x, bias, tokens, phase, GetParam(), 1);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = 0; r < options.rows; ++r) {
          double sum = 0.5 + bias[static_cast<size_t>(r)], size = std::fabs(sum);
          for (int64_t c = 0; c < options.cols; ++c) {
            const double term = matrix.effective(r, c) * x[static_cast<size_t>(t * options.cols + c)];
            sum += term;
            size += std::fabs(term);
          }
          EXPECT_NEAR(y[static_cast<size_t>(t * options.rows + r)], sum, 1e-6 * size);
        }
      }
      EXPECT_EQ(product(generic, x, bias, tokens, phase, GetParam(), 3), y) << "other bits with another team";
    }
  }
}

TEST_P(GenericMatrixTest, GathersAndDecodesAsTheDecoder) {
  const TestMatrix matrix({.rows = 9, .cols = 40, .rank = 2, .channel_scales = true});
  const cpu::GenericMatrix generic(std::make_unique<CodebookMatrix>(matrix.view));
  std::vector<float> dense(9 * 40), decoded(9 * 40), expected(9 * 40);
  const std::vector<int32_t> ids = {8, 7, 6, 5, 4, 3, 2, 1, 0};
  Scratch scratch(2);
  run_on_cpu(2, GetParam(), scratch, [&](const CpuContext& context) {
    if (context.measures) return;
    generic.gather_rows(ids.data(), 9, dense.data(), context);
    generic.decode_rows(0, 9, decoded.data(), context);
  });
  matrix.view.decode_rows(0, 9, expected);
  EXPECT_EQ(decoded, expected);
  for (size_t r = 0; r < 9; ++r) {
    decode_dense_rows(matrix.view, static_cast<int64_t>(r), static_cast<int64_t>(r) + 1, {expected.data(), 40});
    for (size_t c = 0; c < 40; ++c) EXPECT_EQ(dense[(8 - r) * 40 + c], expected[c]);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, GenericMatrixTest, ::testing::ValuesIn(supported_targets()), target_name);

}  // namespace
}  // namespace hxq::kernels::testing
