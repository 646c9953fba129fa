#include "codec/codebook/value_histogram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "codec/encode_test_data.h"
#include "hxq/error.h"

namespace hxq {
namespace {

using testing::Matrix;

void expect_well_formed(const ValueHistogram& histogram, const TensorView& source) {
  int64_t total = 0;
  for (size_t i = 0; i < histogram.size(); ++i) {
    total += histogram.count[i];
    EXPECT_GT(histogram.count[i], 0);
    EXPECT_LE(histogram.low[i], histogram.value[i]);
    EXPECT_GE(histogram.high[i], histogram.value[i]);
    if (i > 0) {
      ASSERT_GT(histogram.low[i], histogram.high[i - 1]);
    }
  }
  EXPECT_EQ(total, source.size());
}

TEST(ValueHistogram, CountsEveryDistinctValue) {
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const Matrix matrix(dtype, 61, 67, testing::draw("laplace", 61 * 67, 5));
    const ValueHistogram histogram = count_values(matrix.view(), 1);
    expect_well_formed(histogram, matrix.view());
    std::map<float, int64_t> expected;
    for (float value : to_float(matrix.view())) ++expected[value];
    ASSERT_EQ(histogram.size(), expected.size());
    size_t i = 0;
    for (const auto& [value, count] : expected) {
      EXPECT_EQ(histogram.value[i], value);
      EXPECT_EQ(histogram.count[i++], count);
    }
  }
}

TEST(ValueHistogram, BinsOfALargeTensorHaveExactMeans) {
  std::vector<float> values = testing::draw("student3", 400 * 500, 6);
  values[17] = 1e-41f, values[18] = -1e-44f, values[19] = -0.0f, values[20] = 3e38f, values[21] = -3e38f;
  const Matrix matrix(DType::f32, 400, 500, values);
  const ValueHistogram histogram = count_values(matrix.view(), 1);
  expect_well_formed(histogram, matrix.view());
  std::vector<long double> sum(histogram.size());
  std::vector<int64_t> count(histogram.size());
  for (float value : values) {
    const auto slot = std::upper_bound(histogram.low.begin(), histogram.low.end(), value) - histogram.low.begin() - 1;
    ASSERT_LE(value, histogram.high[slot]);
    sum[slot] += value;
    ++count[slot];
  }
  for (size_t i = 0; i < histogram.size(); ++i) {
    ASSERT_EQ(histogram.count[i], count[i]);
    const auto mean = static_cast<double>(sum[i] / static_cast<long double>(count[i]));
    EXPECT_NEAR(histogram.value[i], mean, 1e-15 * std::abs(mean));
    EXPECT_LE(histogram.high[i] - histogram.low[i], std::max(0x1p-12 * std::abs(mean), 0x1p-137)) << mean;
  }
}

TEST(ValueHistogram, IsTheSameForAnyNumberOfThreads) {
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const Matrix matrix(dtype, 331, 307, testing::draw("mixture", 331 * 307, 7));
    const ValueHistogram one = count_values(matrix.view(), 1);
    for (int threads : {2, 3, 5}) {
      const ValueHistogram several = count_values(matrix.view(), threads);
      EXPECT_EQ(one.value, several.value);
      EXPECT_EQ(one.count, several.count);
    }
  }
}

TEST(ValueHistogram, TakesBothZerosAsOne) {
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const Matrix matrix(dtype, 1, 4, {0.0f, -0.0f, 1.0f, -0.0f});
    const ValueHistogram histogram = count_values(matrix.view(), 1);
    EXPECT_EQ(histogram.value, (std::vector<double>{0, 1}));
    EXPECT_FALSE(std::signbit(histogram.value[0]));
    EXPECT_EQ(histogram.count, (std::vector<int64_t>{3, 1}));
  }
}

TEST(ValueHistogram, SaysHowManyValuesAreNotFiniteAndWhere) {
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (int rows : {3, 300}) {
      std::vector<float> values = testing::draw("gaussian", rows * 300, 8);
      values[301] = std::numeric_limits<float>::quiet_NaN();
      values[700] = -std::numeric_limits<float>::infinity();
      const Matrix matrix(dtype, rows, 300, values);
      try {
        count_values(matrix.view(), 2);
        ADD_FAILURE() << "accepted";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("2 of " + std::to_string(rows * 300)), std::string::npos)
            << error.what();
        EXPECT_NE(std::string(error.what()).find("position 301"), std::string::npos) << error.what();
      }
    }
  }
}

}  // namespace
}  // namespace hxq
