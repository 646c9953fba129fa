#include "codec/codebook/fit.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>

#include "codec/encode_test_data.h"
#include "codec/partition.h"
#include "io/half.h"

namespace hxq {
namespace {

using testing::Matrix;

/// The scale with the largest |level / s| in [2^14, 2^15).
double scale_of(std::span<const float> levels) {
  double largest = 0;
  for (float level : levels) largest = std::max(largest, std::abs(static_cast<double>(level)));
  return largest > 0 ? std::ldexp(1.0, std::ilogb(largest) - 14) : 1;
}

void expect_snapped(std::span<const float> levels) {
  const double scale = scale_of(levels);
  for (size_t i = 0; i < levels.size(); ++i) {
    const auto scaled = static_cast<float>(levels[i] / scale);
    ASSERT_EQ(static_cast<double>(scaled) * scale, levels[i]);
    EXPECT_EQ(float_from_f16(f16_from_float(scaled)), scaled) << levels[i];
    EXPECT_LT(std::abs(scaled), 0x1p15f);
    EXPECT_FALSE(levels[i] == 0 && std::signbit(levels[i]));
    if (i > 0) {
      EXPECT_GT(levels[i], levels[i - 1]);
    }
  }
}

double error_of(const ValueHistogram& histogram, const std::vector<double>& levels,
                const std::vector<int64_t>& outliers) {
  double error = 0;
  for (size_t i = 0; i < histogram.size(); ++i) {
    double nearest = INFINITY;
    for (double level : levels) nearest = std::min(nearest, std::abs(histogram.value[i] - level));
    error += nearest * nearest * static_cast<double>(histogram.count[i] - outliers[i]);
  }
  return error;
}

TEST(SnapLevels, LeavesBinary16NumbersOfOneScaleAtEveryMagnitude) {
  const std::vector<float> values = testing::draw("cauchy", 256, 21);
  for (int exponent = -160; exponent <= 130; exponent += 5) {
    std::vector<double> levels;
    for (float value : values)
      levels.push_back(std::clamp(std::ldexp(static_cast<double>(value), exponent), -DBL_MAX, DBL_MAX));
    std::sort(levels.begin(), levels.end());
    for (double& level : levels) level = std::clamp(level, -static_cast<double>(FLT_MAX), static_cast<double>(FLT_MAX));
    const std::vector<float> snapped = snap_levels(levels);
    expect_snapped(snapped);
    const double scale = scale_of(snapped);
    for (double level : levels) {
      double nearest = INFINITY;
      for (float candidate : snapped) nearest = std::min(nearest, std::abs(level - candidate));
      const double half_unit = std::max(std::abs(level) * 0x1p-11, scale * 0x1p-25) + 0x1p-150;
      const bool clamped = std::abs(level) > 0x1.ffcp127;
      EXPECT_LE(nearest, clamped ? 0x1p117 : half_unit) << level;
    }
  }
}

TEST(SnapLevels, KeepsWhatItCanHold) {
  EXPECT_EQ(snap_levels(std::vector<double>{0.0}), std::vector<float>{0.0f});
  EXPECT_EQ(snap_levels(std::vector<double>{-1.5, -0.0, 0.25, 2047}),
            (std::vector<float>{-1.5f, 0.0f, 0.25f, 2047.0f}));
  EXPECT_EQ(snap_levels(std::vector<double>{4095.5}), std::vector<float>{4096.0f});  // the rounding reaches 2^15 s
  EXPECT_EQ(snap_levels(std::vector<double>{0x1p-149}), std::vector<float>{0x1p-149f});
  EXPECT_EQ(snap_levels(std::vector<double>{1, 1 + 1e-6, 2}), (std::vector<float>{1.0f, 2.0f}));
}

TEST(WholeLevels, AreMultiplesOfTheScaleAndStillBinary16) {
  std::vector<double> values;
  for (float value : testing::draw("cauchy", 256, 23)) values.push_back(value);
  std::sort(values.begin(), values.end());
  const std::vector<float> snapped = snap_levels(values);
  const std::vector<float> whole = whole_levels(snapped);
  expect_snapped(whole);
  const double scale = scale_of(snapped);
  EXPECT_EQ(scale_of(whole), scale);
  EXPECT_LT(whole.size(), snapped.size()) << "cauchy levels crowd around 0";
  for (float level : whole) EXPECT_EQ(level / scale, std::nearbyint(level / scale));
  for (float level : snapped) {
    double nearest = INFINITY;
    for (float candidate : whole) nearest = std::min(nearest, std::abs(static_cast<double>(level) - candidate));
    EXPECT_LE(nearest, scale / 2);
  }
}

TEST(FitCodebook, TakesWholeLevelsWhereTheyCostNothing) {
  const auto is_whole = [](const char* distribution) {
    const Matrix matrix(DType::bf16, 300, 300, testing::draw(distribution, 300 * 300, 24));
    const CodebookFit fit = fit_codebook(count_values(matrix.view(), 1), 256, 90);
    return whole_levels(fit.levels) == fit.levels;
  };
  EXPECT_TRUE(is_whole("gaussian"));
  EXPECT_FALSE(is_whole("cauchy"));
}

TEST(FitCodebook, SnappingCostsLittle) {
  for (const char* distribution : {"gaussian", "laplace", "student3", "mixture"}) {
    for (DType dtype : {DType::bf16, DType::f32}) {
      const Matrix matrix(dtype, 300, 300, testing::draw(distribution, 300 * 300, 22));
      const ValueHistogram histogram = count_values(matrix.view(), 1);
      const CodebookFit fit = fit_codebook(histogram, 256, 90);
      expect_snapped(fit.levels);
      // The levels without rounding: means of the elements that each stands for.
      std::vector<double> sum(fit.levels.size()), weight(fit.levels.size());
      const std::vector<double> thresholds = thresholds_of(fit.levels);
      for (size_t i = 0; i < histogram.size(); ++i) {
        const auto level =
            std::lower_bound(thresholds.begin(), thresholds.end(), histogram.value[i]) - thresholds.begin();
        const auto kept = static_cast<double>(histogram.count[i] - fit.outliers[i]);
        sum[level] += kept * histogram.value[i];
        weight[level] += kept;
      }
      for (size_t c = 0; c < sum.size(); ++c) sum[c] = weight[c] > 0 ? sum[c] / weight[c] : fit.levels[c];
      const double snapped =
          error_of(histogram, std::vector<double>(fit.levels.begin(), fit.levels.end()), fit.outliers);
      EXPECT_LT(10 * std::log10(snapped / error_of(histogram, sum, fit.outliers)), 0.005) << distribution;
    }
  }
}

// The Lagrangian of the joint problem bounds every choice of levels and outliers from below, at any prices.
TEST(FitCodebook, IsNearTheLowerBoundOfTheJointProblem) {
  for (const char* distribution : {"gaussian", "laplace", "student3", "cauchy", "mixture", "uniform"}) {
    for (const int64_t max_outliers : {40, 400}) {
      const Matrix matrix(DType::bf16, 200, 200, testing::draw(distribution, 200 * 200, 23));
      const ValueHistogram histogram = count_values(matrix.view(), 1);
      const CodebookFit fit = fit_codebook(histogram, 64, max_outliers);
      const double error = error_of(histogram, std::vector<double>(fit.levels.begin(), fit.levels.end()), fit.outliers);

      const PointSums sums(histogram.value, std::vector<double>(histogram.count.begin(), histogram.count.end()));
      Partitioner partitioner(sums);
      double bound = 0;
      double price = 0;
      for (double radius = 1e-7; radius < 0.1; radius *= 1.03) {
        // The best price per cluster for this price per outlier is the one that gives the count.
        const double outlier_price = radius * radius;
        const Partition partition = partitioner.solve_count(64, outlier_price, price);
        if (partition.size() != 64) continue;
        bound =
            std::max(bound, partition.error + outlier_price * (partition.outliers - static_cast<double>(max_outliers)));
      }
      bound *= sums.unit() * sums.unit();
      ASSERT_GT(bound, 0);
      EXPECT_GT(error, bound * (1 - 1e-4)) << distribution;
      EXPECT_LT(10 * std::log10(error / bound), 0.1) << distribution << " " << max_outliers;
    }
  }
}

TEST(FitCodebook, UsesTheBudgetAndSplitsAtMostOneSlot) {
  const Matrix matrix(DType::bf16, 200, 200, testing::draw("laplace", 200 * 200, 24));
  const ValueHistogram histogram = count_values(matrix.view(), 1);
  for (int64_t budget : {0, 1, 7, 100, 5000, 39999, 40000}) {
    const CodebookFit fit = fit_codebook(histogram, 32, budget);
    int64_t outliers = 0, with_error = 0;
    int partial = 0;
    for (size_t i = 0; i < histogram.size(); ++i) {
      ASSERT_LE(fit.outliers[i], histogram.count[i]);
      outliers += fit.outliers[i];
      partial += fit.outliers[i] > 0 && fit.outliers[i] < histogram.count[i];
      const bool exact = std::find(fit.levels.begin(), fit.levels.end(), histogram.value[i]) != fit.levels.end();
      if (!exact) with_error += histogram.count[i];
      EXPECT_TRUE(!exact || fit.outliers[i] == 0);
    }
    EXPECT_EQ(outliers, std::min(budget, with_error));
    EXPECT_LE(partial, 1);
  }
}

}  // namespace
}  // namespace hxq
