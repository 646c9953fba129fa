// What the product of few tokens keeps of x in two parts.

#include "kernels/cuda/skinny_gemm.cuh"

#include <gtest/gtest.h>

#include "kernels/cuda/linear_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

/// The upper parts of x cancel, but only over the first and last columns of 16, which are multiplied one after the
/// other: on the way their sum is 2^17 times what a lower part adds, and a sum of both would cut that off.
TEST(CudaSkinnyGemm, PartsOfXHaveSumsOfTheirOwn) {
  HXQ_NEEDS_GPU();
  constexpr int64_t kRows = 80, kCols = 512;
  constexpr double kBound = 1e-5;  // of the lower parts; a sum that both share is 1e-4 and more off
  TestMatrix matrix = make_matrix({.rows = kRows, .cols = kCols, .k = 2});
  matrix.codebook = {1, -1};
  for (size_t i = 0; i < matrix.indices.size(); ++i) {
    matrix.indices[i] = i % 16 < 8 ? 0 : 1;
    matrix.decoded[i] = matrix.codebook[matrix.indices[i]];
  }
  const DeviceMatrix device(matrix);
  Random random(3);
  for (const int64_t tokens : {2, 12, 30}) {
    std::vector<float> x;
    Product expected;
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int64_t c = 0; c < kCols; ++c) {
        const float lower = static_cast<float>(512 + random.below(1536)) * 0x1p-23f;  // x rounds to 1 in 11 bits
        x.push_back(c % 16 < 8 ? 1 + lower : 1 - lower);
        sum += lower;
      }
      expected.y.insert(expected.y.end(), kRows, sum);
      expected.size.insert(expected.size.end(), kRows, sum);
    }
    const DeviceRows device_x(x, tokens, kCols, 0, DType::f32), device_y(tokens, kRows, 0, DType::f32);
    const LinearArgs args{.x = device_x.input(), .y = device_y.output(), .tokens = tokens};
    if (current_capability() != 90) {
      EXPECT_FALSE(supports_skinny_gemm(device.weight(), args));
      GTEST_SKIP() << "no such kernel";
    }
    ASSERT_TRUE(supports_skinny_gemm(device.weight(), args)) << tokens;
    const FusedProduct product{.weight = device.weight(), .y = args.y};
    HXQ_EXPECT_OK(skinny_gemm(args, {&product, 1}, nullptr));
    expect_finished();
    expect_close(device_y.values(), expected.y, expected.size, kBound, DType::f32, std::to_string(tokens) + " tokens");
  }
}

}  // namespace
}  // namespace hxq::cuda
