// Products of prompts through cuBLAS against sums in double over the decoded matrix.

#include "kernels/cuda/prefill.cuh"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/sequence.h"
#include "kernels/cuda/test_device.h"

namespace hxq::cuda {
namespace {

using namespace testing;

TEST(CudaPrefill, MultipliesThroughCublas) {
  HXQ_NEEDS_GPU();
  if (!open_cublas()) GTEST_SKIP() << "no cuBLAS";
  for (const MatrixOptions& options :
       {MatrixOptions{.rows = 300, .cols = 208, .outliers = 0.01},
        MatrixOptions{.rows = 90, .cols = 72, .outliers = 0.02, .rank = 2, .scales = true}}) {
    const TestMatrix matrix = make_matrix(options);
    for (const DType x : {DType::f32, DType::bf16}) {
      const Call call{.tokens = kPrefillTokens,
                      .x = x,
                      .y = x,
                      .gap = 3,
                      .bias = true,
                      .accumulate = true,
                      .precision = Precision::fast};
      expect_linear(DeviceMatrix(matrix).weight(), matrix.decoded, call, "prompt", 0x1p-7);
    }
  }
}

/// x is rounded once, by what makes it if anything does; outputs that lie side by side are made together.
TEST(CudaPrefill, MultipliesByMatricesTogether) {
  HXQ_NEEDS_GPU();
  if (!open_cublas()) GTEST_SKIP() << "no cuBLAS";
  constexpr int64_t kCols = 208, kTokens = kPrefillTokens, kRows[] = {300, 48, 40, 24}, kAll = 412;
  std::vector<TestMatrix> matrices;
  for (const int64_t rows : kRows) matrices.push_back(make_matrix({.rows = rows, .cols = kCols, .outliers = 0.01}));
  const std::vector<float> x = Random(7).normals(kTokens * kCols), weight = Random(2).normals(kCols),
                           bias = Random(3).normals(kRows[3]);
  const std::vector<float> gate = Random(4).normals(kTokens * kCols);
  std::vector<float> normed = x, gated = x;
  for (size_t i = 0; i < gated.size(); ++i) gated[i] *= gate[i] / (1 + std::exp(-gate[i]));
  for (int64_t t = 0; t < kTokens; ++t) {
    double sum = 0;
    for (int64_t c = 0; c < kCols; ++c) sum += std::pow(x[static_cast<size_t>(t * kCols + c)], 2.0);
    for (int64_t c = 0; c < kCols; ++c)
      normed[static_cast<size_t>(t * kCols + c)] *=
          static_cast<float>(weight[static_cast<size_t>(c)] / std::sqrt(sum / kCols + 1e-5));
  }
  const DeviceArray<float> device_weight(weight), device_bias(bias);
  for (const auto& [what, multiplied] :
       {std::pair<std::string, const std::vector<float>&>{"as it is", x}, {"normed", normed}, {"gated", gated}}) {
    for (const DType y_type : {DType::f32, DType::bf16}) {
      const DeviceRows device_x(x, kTokens, kCols, 4, DType::f32), device_gate(gate, kTokens, kCols, 4, DType::f32),
          y(kTokens, kAll, 4, y_type);
      std::vector<DeviceMatrix> on_device;
      for (const TestMatrix& matrix : matrices) on_device.emplace_back(matrix);
      std::vector<FusedProduct> products;
      size_t bytes = 0;
      int64_t first = 0;
      for (size_t i = 0; i < 4; ++i) {
        products.push_back(
            {.weight = on_device[i].weight(), .y = y.output(), .bias = i == 3 ? device_bias.data() : nullptr});
        products[i].y.data = static_cast<char*>(products[i].y.data) + first * element_bytes(y_type);
        first += kRows[i];
        bytes = std::max(bytes, linear_workspace(products[i].weight, kTokens));
      }
      const DeviceArray<std::byte> workspace(bytes);
      const RmsNormArgs norm{.x = device_x.input(),
                             .weight = device_weight.data(),
                             .y = device_x.output(),
                             .tokens = kTokens,
                             .dim = kCols,
                             .eps = 1e-5f};
      const GatedActivationArgs activation{
          .gate = device_gate.input(), .up = device_x.input(), .y = device_x.output(), .tokens = kTokens, .dim = kCols};
      HXQ_EXPECT_OK(joint_linear(
          {.x = device_x.input(),
           .tokens = kTokens,
           .precision = Precision::fast,
           .workspace = {.data = workspace.data(), .bytes = bytes}},
          {.norm = what == "normed" ? &norm : nullptr, .activation = what == "gated" ? &activation : nullptr},
          products.data(), 4, nullptr));
      expect_finished();
      std::vector<double> expected(kTokens * kAll), size(kTokens * kAll);
      first = 0;
      for (size_t i = 0; i < 4; ++i) {
        const Product part = multiply(matrices[i], multiplied, kTokens, i == 3 ? bias : std::vector<float>{}, {});
        for (int64_t t = 0; t < kTokens; ++t) {
          for (int64_t r = 0; r < kRows[i]; ++r) {
            expected[static_cast<size_t>(t * kAll + first + r)] = part.y[static_cast<size_t>(t * kRows[i] + r)];
            size[static_cast<size_t>(t * kAll + first + r)] = part.size[static_cast<size_t>(t * kRows[i] + r)];
          }
        }
        first += kRows[i];
      }
      expect_close(y.values(), expected, size, 0x1p-7, y_type, what);
    }
  }
}

TEST(CudaPrefill, DecodesPanelAfterPanel) {
  HXQ_NEEDS_GPU();
  if (!open_cublas()) GTEST_SKIP() << "no cuBLAS";
  constexpr int64_t kRows = 300, kCols = 208, kTokens = 50;
  const TestMatrix matrix = make_matrix({.rows = kRows, .cols = kCols, .outliers = 0.01});
  const DeviceMatrix device(matrix);
  const std::vector<float> x = Random(7).normals(kTokens * kCols);
  const DeviceRows device_x(x, kTokens, kCols, 3, DType::f32), device_y(kTokens, kRows, 1, DType::f32);
  const DeviceArray<std::byte> workspace(prefill_workspace(device.weight(), kPrefillTokens));
  const FusedProduct product{.weight = device.weight(), .y = device_y.output()};
  HXQ_EXPECT_OK(prefill_products({.x = device_x.input(),
                                  .tokens = kTokens,
                                  .precision = Precision::fast,
                                  .workspace = {.data = workspace.data(), .bytes = workspace.size()}},
                                 {}, {&product, 1}, nullptr, 128 * 2 * kCols));
  expect_finished();
  const Product expected = multiply(matrix, x, kTokens, {}, {});
  expect_close(device_y.values(), expected.y, expected.size, 0x1p-7, DType::f32, "three panels");
}

}  // namespace
}  // namespace hxq::cuda
