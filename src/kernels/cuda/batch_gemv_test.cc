// What the GEMV of a few tokens does of its own: parts of x, powers of two that divide it, passes, many outliers.

#include "kernels/cuda/batch_gemv.cuh"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cuda/linear_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

/// y = W x by the kernel itself, where the GPU has it: several times one behind the other, so that both kinds of it run
/// and begin while others end. All give the same bits.
void expect_product(const TestMatrix& matrix, const std::vector<float>& x, int64_t tokens, DType dtype,
                    Precision precision, double bound, const std::string& what) {
  constexpr int kTimes = 6;
  const DeviceMatrix device(matrix);
  const DeviceRows device_x(x, tokens, matrix.cols, 0, dtype);
  const LinearArgs args{.x = device_x.input(), .tokens = tokens, .precision = precision};
  if (current_capability() != 90) {
    EXPECT_FALSE(supports_batch_gemv(device.weight(), args));
    GTEST_SKIP() << "no such kernel";
  }
  ASSERT_TRUE(supports_batch_gemv(device.weight(), args)) << what;
  const DeviceRows device_y(kTimes * tokens, matrix.rows, 0, DType::f32);
  const int64_t values = tokens * matrix.rows;
  for (int i = 0; i < kTimes; ++i) {
    FusedProduct product{.weight = device.weight(), .y = device_y.output()};
    product.y.data = static_cast<float*>(product.y.data) + i * values;
    HXQ_EXPECT_OK(batch_gemv(args, {&product, 1}, nullptr));
  }
  expect_finished();
  const std::vector<float> all = device_y.values();
  const std::vector<float> first(all.begin(), all.begin() + values);
  const Product expected = multiply(matrix, x, tokens, {}, {});
  expect_close(first, expected.y, expected.size, bound, DType::f32, what);
  for (int i = 1; i < kTimes; ++i) {
    EXPECT_TRUE(std::equal(first.begin(), first.end(), all.begin() + i * values)) << what << ", product " << i;
  }
}

/// Half of the columns are 2^120 times as large as the others, but their weights are zero: what is left fits binary16
/// only if columns of different warps are divided by different powers of two.
TEST(CudaBatchGemv, EachWarpDividesItsOwnColumns) {
  HXQ_NEEDS_GPU();
  constexpr int64_t kCols = 1024, kTokens = 5;
  TestMatrix matrix = make_matrix({.rows = 1100, .cols = kCols});
  matrix.codebook[0] = 0;
  std::vector<float> x = Random(5).normals(kTokens * kCols);
  for (int64_t c = 0; c < kCols; ++c) {
    const bool large = c / 128 % 2 == 0;
    for (int64_t t = 0; t < kTokens; ++t) x[static_cast<size_t>(t * kCols + c)] *= large ? 0x1p60f : 0x1p-60f;
    for (int64_t r = 0; r < matrix.rows; ++r) {
      const auto at = static_cast<size_t>(r * kCols + c);
      if (large) matrix.indices[at] = 0;
      matrix.decoded[at] = matrix.codebook[matrix.indices[at]];
    }
  }
  expect_product(matrix, x, kTokens, DType::f32, Precision::exact, 2e-6, "exact");
  expect_product(matrix, x, kTokens, DType::f32, Precision::fast, 0x1p-10, "fast");
}

/// The upper parts of x cancel, but only over the first and last columns of 16, which are multiplied one after the
/// other: on the way their sum is 2^17 times what a lower part adds, and a sum of both would cut that off.
TEST(CudaBatchGemv, PartsOfXHaveSumsOfTheirOwn) {
  HXQ_NEEDS_GPU();
  constexpr int64_t kRows = 2100, kCols = 512, kTokens = 7;
  TestMatrix matrix = make_matrix({.rows = kRows, .cols = kCols, .k = 2});
  matrix.codebook = {1, -1};
  for (size_t i = 0; i < matrix.indices.size(); ++i) {
    matrix.indices[i] = i % 16 < 8 ? 0 : 1;
    matrix.decoded[i] = matrix.codebook[matrix.indices[i]];
  }
  std::vector<float> x;
  Random random(3);
  for (int64_t i = 0; i < kTokens * kCols; ++i) {
    const float lower = static_cast<float>(512 + random.below(1536)) * 0x1p-23f;  // x rounds to 1 in 11 bits
    x.push_back(i % 16 < 8 ? 1 + lower : 1 - lower);
  }
  // Of the lower parts, which are 2^-13 of |x| on average; a sum that both share is 1e-4 and more off.
  expect_product(matrix, x, kTokens, DType::f32, Precision::exact, 0x1p-13 * 1e-5, "parts");
}

TEST(CudaBatchGemv, ClustersAndBlocksGoOnToFurtherPasses) {
  HXQ_NEEDS_GPU();
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{40000, 144}, {40000, 384}, {20000, 2064}}) {
    const TestMatrix matrix = make_matrix({.rows = rows, .cols = cols, .outliers = 0.002});
    for (const int64_t tokens : {2, 8}) {
      const std::vector<float> x = Random(7).normals(static_cast<size_t>(tokens * cols));
      const std::string what = to_string(Shape{tokens, rows, cols});
      expect_product(matrix, x, tokens, DType::f32, Precision::fast, 0x1p-10, what + " fast");
      if (rows * cols <= 16 << 20) expect_product(matrix, x, tokens, DType::f32, Precision::exact, 2e-6, what);
    }
  }
}

/// Warps whose tiles of the last round have no rows are ahead of the others.
TEST(CudaBatchGemv, LastRoundsHaveFewRows) {
  HXQ_NEEDS_GPU();
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{9000, 1024}, {10000, 512}, {9000, 256}, {5000, 400}}) {
    const TestMatrix matrix = make_matrix({.rows = rows, .cols = cols, .outliers = 0.001});
    const std::vector<float> x = Random(8).normals(static_cast<size_t>(4 * cols));
    const std::string what = to_string(Shape{4, rows, cols});
    expect_product(matrix, x, 4, DType::f32, Precision::fast, 0x1p-10, what + " fast");
    expect_product(matrix, x, 4, DType::f32, Precision::exact, 2e-6, what);
  }
}

TEST(CudaBatchGemv, TakesMoreOutliersThanABlockKeepsReady) {
  HXQ_NEEDS_GPU();
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{8000, 144}, {1030, 1024}, {260, 4096}}) {
    const TestMatrix matrix = make_matrix({.rows = rows, .cols = cols, .outliers = 0.2});
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const std::vector<float> x = Random(9).normals(static_cast<size_t>(3 * cols), dtype);
      expect_product(matrix, x, 3, dtype, Precision::exact, 2e-6, std::to_string(cols) + " columns");
    }
  }
}

}  // namespace
}  // namespace hxq::cuda
