#include "codec/codebook/encode.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>

#include "codec/codebook/assign.h"
#include "codec/encode_test_data.h"
#include "hxq/error.h"
#include "io/checkpoint.h"
#include "io/half.h"
#include "optimal_clusters.h"
#include "percentile_codebook.h"
#include "shared_data.h"

namespace hxq {
namespace {

using testing::Matrix;

template <class T>
std::vector<T> values_of(const EncodedPart& plane) {
  std::vector<T> values(plane.bytes.size() / sizeof(T));
  std::memcpy(values.data(), plane.bytes.data(), plane.bytes.size());
  return values;
}

struct Decoded {
  std::vector<float> codebook = {}, values = {}, sidecar_values = {};
  std::vector<uint8_t> indices = {};
  std::vector<int64_t> positions = {};
};

// Checks the planes against their description and decodes them.
Decoded decode(const TensorView& source, const EncodedTensor& encoded) {
  const std::vector<EncodedPart>& planes = encoded.parts;
  EXPECT_EQ(planes.size(), encoded.outliers > 0 ? 4u : 2u);
  EXPECT_EQ(planes[0].suffix, "codebook");
  EXPECT_EQ(planes[0].dtype, DType::f32);
  EXPECT_EQ(planes[1].suffix, "indices");
  EXPECT_EQ(planes[1].dtype, DType::u8);
  EXPECT_EQ(planes[1].shape, source.shape);
  Decoded decoded{.codebook = values_of<float>(planes[0]), .indices = values_of<uint8_t>(planes[1])};
  EXPECT_EQ(planes[0].shape, Shape{static_cast<int64_t>(decoded.codebook.size())});
  EXPECT_TRUE(std::is_sorted(decoded.codebook.begin(), decoded.codebook.end()));
  for (uint8_t index : decoded.indices) decoded.values.push_back(decoded.codebook.at(index));
  if (planes.size() == 4) {
    EXPECT_EQ(planes[2].suffix, "sidecar_positions");
    EXPECT_EQ(planes[2].dtype, DType::i64);
    EXPECT_EQ(planes[2].shape, Shape{encoded.outliers});
    EXPECT_EQ(planes[3].suffix, "sidecar_values");
    EXPECT_EQ(planes[3].dtype, DType::f32);
    EXPECT_EQ(planes[3].shape, Shape{encoded.outliers});
    decoded.positions = values_of<int64_t>(planes[2]);
    decoded.sidecar_values = values_of<float>(planes[3]);
    for (size_t i = 0; i < decoded.positions.size(); ++i) {
      if (i > 0) {
        EXPECT_GT(decoded.positions[i], decoded.positions[i - 1]);
      }
      float& value = decoded.values.at(static_cast<size_t>(decoded.positions[i]));
      EXPECT_NE(value, decoded.sidecar_values[i]) << "an outlier that removes no error";
      value = decoded.sidecar_values[i];
    }
  }
  return decoded;
}

// What holds for every tensor: nearest levels, exact outliers within the budget, and the fidelity reported.
Decoded check(const TensorView& source, const EncodedTensor& encoded, const CodebookOptions& options) {
  Decoded decoded = decode(source, encoded);
  const std::vector<float> weights = to_float(source);
  EXPECT_LE(encoded.outliers, std::floor(options.sidecar_fraction * static_cast<double>(weights.size())));
  EXPECT_LE(decoded.codebook.size(), static_cast<size_t>(options.max_codewords));
  for (size_t i = 0; i < decoded.positions.size(); ++i) {
    EXPECT_EQ(decoded.sidecar_values[i], weights[static_cast<size_t>(decoded.positions[i])]);
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto middle = [&](size_t below) {
      return (static_cast<double>(decoded.codebook[below]) + decoded.codebook[below + 1]) / 2;
    };
    const size_t level = decoded.indices[i];
    if (level > 0) {
      EXPECT_GT(weights[i], middle(level - 1));
    }
    if (level + 1 < decoded.codebook.size()) {
      EXPECT_LE(weights[i], middle(level));
    }
  }
  const Fidelity counted = compare(source, decoded.values);
  EXPECT_EQ(encoded.fidelity.count, counted.count);
  EXPECT_NEAR(encoded.fidelity.signal, counted.signal, 1e-11 * counted.signal);
  EXPECT_NEAR(encoded.fidelity.decoded, counted.decoded, 1e-11 * counted.decoded);
  EXPECT_NEAR(encoded.fidelity.dot, counted.dot, 1e-11 * counted.signal);
  EXPECT_NEAR(encoded.fidelity.squared_error, counted.squared_error, 1e-10 * counted.squared_error);
  EXPECT_EQ(encoded.fidelity.max_error, counted.max_error);
  return decoded;
}

/// Values that are not outliers, ascending.
std::vector<double> kept_values(const TensorView& source, const Decoded& decoded) {
  const std::vector<float> weights = to_float(source);
  std::vector<double> kept;
  for (size_t i = 0, next = 0; i < weights.size(); ++i) {
    if (next < decoded.positions.size() && decoded.positions[next] == static_cast<int64_t>(i)) {
      ++next;
    } else {
      kept.push_back(weights[i]);
    }
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

constexpr const char* kDistributions[] = {"gaussian", "laplace", "student3", "cauchy", "mixture", "uniform"};

class EveryDistribution : public ::testing::TestWithParam<std::tuple<const char*, DType>> {};

TEST_P(EveryDistribution, IsWithinAHundredthOfADecibelOfTheOptimumForItsOutliers) {
  const auto [distribution, dtype] = GetParam();
  const Matrix matrix(dtype, 30, 50, testing::draw(distribution, 30 * 50, 31));
  for (int k : {1, 5, 32}) {
    for (double fraction : {0.0, 0.001, 0.02}) {
      const CodebookOptions options{.sidecar_fraction = fraction, .max_codewords = k};
      const EncodedTensor encoded = encode_codebook(matrix.view(), options);
      const Decoded decoded = check(matrix.view(), encoded, options);
      const double least = testing::exhaustive_error(kept_values(matrix.view(), decoded), k);
      EXPECT_LT(10 * std::log10(encoded.fidelity.squared_error / least), 0.01) << k << " " << fraction;
      EXPECT_GT(encoded.fidelity.squared_error, least * (1 - 1e-9));
      EXPECT_EQ(encoded.outliers, std::floor(fraction * 1500));
    }
  }
}

class EveryDistributionLarge : public EveryDistribution {};

TEST_P(EveryDistributionLarge, IsWithinAHundredthOfADecibelOfTheOptimumForItsOutliers) {
  const auto [distribution, dtype] = GetParam();
  const Matrix matrix(dtype, 260, 261, testing::draw(distribution, 260 * 261, 32));
  const CodebookOptions options;
  const EncodedTensor encoded = encode_codebook(matrix.view(), options);
  const Decoded decoded = check(matrix.view(), encoded, options);
  const double least = testing::divide_and_conquer_error(kept_values(matrix.view(), decoded), options.max_codewords);
  // 256 equal cells up to the largest level are only ten steps of binary16 wide there, which rounding cannot hide.
  const bool equal_cells = std::string_view(distribution) == "uniform";
  EXPECT_LT(10 * std::log10(encoded.fidelity.squared_error / least), equal_cells ? 0.02 : 0.01);
  EXPECT_GT(encoded.fidelity.squared_error, least * (1 - 1e-9));
}

/// How far apart the levels of each segment are, as whole numbers of the unit that `snap_levels` speaks of; checks that
/// they lie on lines.
std::vector<int> slopes_of(const std::vector<float>& codebook) {
  float largest = 0;
  for (const float level : codebook) largest = std::max(largest, std::fabs(level));
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 14);
  std::vector<int> slopes;
  for (size_t h = 0; h < codebook.size(); h += 8) {
    const double slope = (double{codebook[h + 1]} - codebook[h]) / unit;
    EXPECT_EQ(slope, std::nearbyint(slope));
    for (size_t l = 0; l < 8; ++l) {
      EXPECT_EQ(codebook[h + l], codebook[h] + unit * slope * static_cast<double>(l)) << h << " " << l;
      const double whole = codebook[h + l] / unit;
      EXPECT_EQ(std::nearbyint(whole), whole);
      EXPECT_EQ(static_cast<double>(float_from_f16(f16_from_float(static_cast<float>(whole)))), whole);
    }
    slopes.push_back(static_cast<int>(slope));
  }
  return slopes;
}

TEST_P(EveryDistributionLarge, SegmentsAreLinesAndCostLittle) {
  const auto [distribution, dtype] = GetParam();
  const Matrix matrix(dtype, 260, 261, testing::draw(distribution, 260 * 261, 32));
  const EncodedTensor fitted = encode_codebook(matrix.view(), {.low_rank = 0});
  const CodebookOptions options{.low_rank = 0, .in_segments = true};
  const EncodedTensor encoded = encode_codebook(matrix.view(), options);
  const Decoded decoded = check(matrix.view(), encoded, options);
  ASSERT_EQ(decoded.codebook.size(), 256u);
  int all = 0;
  const std::vector<int> slopes = slopes_of(decoded.codebook);
  for (const int slope : slopes) all |= slope;
  const int step = std::min(all & -all, 16);
  for (const int slope : slopes) EXPECT_TRUE(slope > 0 && slope / step <= 255) << slope;
  EXPECT_EQ(encoded.outliers, fitted.outliers);
  const double loss = 10 * std::log10(encoded.fidelity.squared_error / fitted.fidelity.squared_error);
  EXPECT_LT(loss, std::string_view(distribution) == "cauchy" ? 2.5 : 0.6) << distribution;
  EXPECT_GT(loss, -0.001) << distribution;
}

// More levels than values: there is nothing to gain.
TEST(EncodeCodebook, FewValuesStayExactWithSegments) {
  const Matrix matrix(DType::f32, 2, 4, {1, 2, 3, 4, 5, 6, 7, 8.5f});
  const EncodedTensor encoded = encode_codebook(matrix.view(), {.in_segments = true});
  EXPECT_EQ(encoded.fidelity.squared_error, 0);
  EXPECT_THROW(encode_codebook(matrix.view(), {.max_codewords = 16, .in_segments = true}), Error);
}

std::string name_of_case(const ::testing::TestParamInfo<EveryDistribution::ParamType>& test) {
  return std::string(std::get<0>(test.param)) + "_" + std::string(name_of(std::get<1>(test.param)));
}

INSTANTIATE_TEST_SUITE_P(Encode, EveryDistribution,
                         ::testing::Combine(::testing::ValuesIn(kDistributions),
                                            ::testing::Values(DType::f32, DType::f16, DType::bf16)),
                         name_of_case);
// F32 alone: enough elements for values to be binned.
INSTANTIATE_TEST_SUITE_P(Encode, EveryDistributionLarge,
                         ::testing::Combine(::testing::ValuesIn(kDistributions), ::testing::Values(DType::f32)),
                         name_of_case);

TEST(EncodeCodebook, GivesTheSameBytesForAnyNumberOfThreads) {
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const Matrix matrix(dtype, 1151, 1201, testing::draw("student3", 1151 * 1201, 33));
    const EncodedTensor one = encode_codebook(matrix.view(), {.threads = 1});
    check(matrix.view(), one, {});
    for (int threads : {2, 3, 5}) {
      const EncodedTensor several = encode_codebook(matrix.view(), {.threads = threads});
      ASSERT_EQ(several.parts.size(), one.parts.size());
      for (size_t i = 0; i < one.parts.size(); ++i) {
        EXPECT_TRUE(several.parts[i].bytes == one.parts[i].bytes) << threads << " " << i;
      }
      EXPECT_EQ(several.fidelity.squared_error, one.fidelity.squared_error);
      EXPECT_EQ(several.fidelity.dot, one.fidelity.dot);
    }
  }
}

TEST(EncodeCodebook, KeepsFewDistinctValuesExactly) {
  std::vector<float> values;
  for (int i = 0; i < 5000; ++i) values.push_back(static_cast<float>(i * 7 % 256 - 128) / 64);
  for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const Matrix matrix(dtype, 50, 100, values);
    const EncodedTensor encoded = encode_codebook(matrix.view(), {});
    check(matrix.view(), encoded, {});
    EXPECT_EQ(encoded.fidelity.squared_error, 0);
    EXPECT_EQ(encoded.outliers, 0);
    EXPECT_EQ(encoded.parts[0].shape, Shape{256});
  }
}

// The bins of a large F32 tensor must not blur values that a codebook can hold.
TEST(EncodeCodebook, KeepsFewDistinctValuesOfALargeTensorExactly) {
  std::vector<float> values;
  for (int i = 0; i < 300 * 300; ++i) values.push_back(static_cast<float>(i * 7 % 256 - 128) / 64);
  const Matrix matrix(DType::f32, 300, 300, values);
  const EncodedTensor encoded = encode_codebook(matrix.view(), {});
  check(matrix.view(), encoded, {});
  EXPECT_EQ(encoded.fidelity.squared_error, 0);
  EXPECT_EQ(encoded.outliers, 0);
}

TEST(EncodeCodebook, TakesOutliersOfEqualErrorFromTheFront) {
  for (int64_t cols : {100, 1000}) {  // sorted and binned F32
    const Matrix matrix(DType::f32, 100, cols, std::vector<float>(static_cast<size_t>(100 * cols), 0.1f));
    const EncodedTensor encoded = encode_codebook(matrix.view(), {});
    const Decoded decoded = check(matrix.view(), encoded, {});
    EXPECT_EQ(decoded.codebook.size(), 1u);
    ASSERT_EQ(encoded.outliers, cols / 10);  // 0.1 has more bits than a level
    for (size_t i = 0; i < decoded.positions.size(); ++i) EXPECT_EQ(decoded.positions[i], static_cast<int64_t>(i));
  }
}

TEST(EncodeCodebook, HandlesDegenerateTensors) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const std::vector<std::vector<float>> cases = {
      {0.0f},
      {-0.0f},
      {3.5f},
      {-tiny},
      {0, 0, 0, 0},
      {-0.0f, 0.0f, -0.0f},
      {FLT_MAX, -FLT_MAX},
      {FLT_MAX, tiny, 0},
      {1e30f, 1, 1e-30f, -1e30f},
      {tiny, 2 * tiny, 3 * tiny, -5 * tiny},
  };
  for (const auto& values : cases) {
    for (int k : {1, 2, 256}) {
      const Matrix matrix(DType::f32, 1, static_cast<int64_t>(values.size()), values);
      for (double fraction : {0.0, 0.5, 1.0}) {
        const CodebookOptions options{.sidecar_fraction = fraction, .max_codewords = k};
        const EncodedTensor encoded = encode_codebook(matrix.view(), options);
        check(matrix.view(), encoded, options);
        if (fraction == 1.0) {
          EXPECT_EQ(encoded.fidelity.squared_error, 0);
        }
      }
    }
  }
}

TEST(EncodeCodebook, DoesNotDependOnTheMagnitude) {
  const std::vector<float> values = testing::draw("gaussian", 90 * 900, 34);
  const double snr = encode_codebook(Matrix(DType::f32, 90, 900, values).view(), {}).fidelity.snr_db();
  for (int exponent : {-120, -60, 60, 125}) {
    std::vector<float> scaled;
    for (float value : values) scaled.push_back(std::ldexp(value, exponent));
    const Matrix matrix(DType::f32, 90, 900, scaled);
    const EncodedTensor encoded = encode_codebook(matrix.view(), {});
    check(matrix.view(), encoded, {});
    EXPECT_NEAR(encoded.fidelity.snr_db(), snr, 0.01) << exponent;
  }
}

// A few values so large that they drown the rest in any common sum.
TEST(EncodeCodebook, KeepsTheBulkAccurateBesideHugeOutliers) {
  for (int64_t cols : {90, 900}) {
    std::vector<float> values = testing::draw("gaussian", static_cast<int>(90 * cols), 35);
    const size_t many = values.size();
    const EncodedTensor plain = encode_codebook(Matrix(DType::f32, 90, cols, values).view(), {.sidecar_fraction = 0});
    values[7] = 1e30f, values[many / 2] = -3e37f, values[many - 1] = 2e9f;
    const Matrix matrix(DType::f32, 90, cols, values);
    const CodebookOptions options{.sidecar_fraction = 3.0 / static_cast<double>(many) + 1e-9};
    const EncodedTensor encoded = encode_codebook(matrix.view(), options);
    check(matrix.view(), encoded, options);
    EXPECT_EQ(encoded.outliers, 3);
    EXPECT_LT(10 * std::log10(encoded.fidelity.squared_error / plain.fidelity.squared_error), 0.01);
  }
}

TEST(EncodeCodebook, SaysWhatIsWrong) {
  const std::vector<float> values(12, 1.0f);
  const Matrix matrix(DType::f32, 3, 4, values);
  TensorView view = matrix.view();
  view.shape = {12};
  EXPECT_THROW(encode_codebook(view, {}), Error);
  view.shape = {4, 4};
  EXPECT_THROW(encode_codebook(view, {}), Error);
  view.shape = {0, 4};
  view.bytes = {};
  EXPECT_THROW(encode_codebook(view, {}), Error);
  view = matrix.view();
  view.dtype = DType::i32;
  EXPECT_THROW(encode_codebook(view, {}), Error);
  view = matrix.view();
  EXPECT_THROW(encode_codebook(view, {.sidecar_fraction = -0.1}), Error);
  EXPECT_THROW(encode_codebook(view, {.sidecar_fraction = NAN}), Error);
  EXPECT_THROW(encode_codebook(view, {.max_codewords = 257}), Error);
  EXPECT_THROW(encode_codebook(view, {.max_codewords = 0}), Error);
  EXPECT_THROW(encode_codebook(view, {.threads = -1}), Error);
}

TEST(EncodeCodebook, BeatsThePercentileRecipeOnEveryLinearWeightOfTheSharedModels) {
  HXQ_REQUIRE_SHARED();
  for (const char* model : {"wiki-mamba-7m", "wiki-mamba-25m"}) {
    const Checkpoint checkpoint = Checkpoint::open(testing::shared_dir() / "models" / model);
    std::vector<double> snrs;
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      if (tensor.shape.size() != 2 || !name.ends_with(".weight")) continue;
      const EncodedTensor encoded = encode_codebook(tensor, {});
      const double snr = encoded.fidelity.snr_db();
      EXPECT_GE(snr - testing::percentile_codebook_snr_db(tensor, encoded.outliers), 6.5) << name;
      snrs.push_back(snr);
    }
    ASSERT_GE(snrs.size(), 49u);
    std::nth_element(snrs.begin(), snrs.begin() + static_cast<std::ptrdiff_t>(snrs.size() / 2), snrs.end());
    EXPECT_GE(snrs[snrs.size() / 2], 44.0);
  }
}

/// It reads as zeros then (hxq/mapped_files.h): what is made of them is thrown away, but it must come to an end.
TEST(Assign, EndsWhereTheSourceWasCutSinceItsValuesWereCounted) {
  for (const int rows : {2, 300}) {  // floats are sorted or counted in bins
    std::vector<float> values(static_cast<size_t>(rows) * 300);
    for (size_t i = 0; i < values.size(); ++i) values[i] = 100 + static_cast<float>(i % 9);
    for (size_t i = 0; i < 40; ++i) values[i * 11] = i % 2 == 0 ? 300 : 1;  // outliers, with zero beyond the least
    for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
      const ValueHistogram histogram = count_values(Matrix(dtype, rows, 300, values).view(), 1);
      const CodebookFit fit = fit_codebook(histogram, 4, 50, false);
      const auto is_partial = [&](size_t i) { return fit.outliers[i] > 0 && fit.outliers[i] < histogram.count[i]; };
      bool has_partial = false;
      for (size_t i = 0; i < histogram.size(); ++i) has_partial |= is_partial(i);
      ASSERT_TRUE(has_partial);
      std::vector<std::byte> indices(values.size());
      const Matrix cut(dtype, rows, 300, std::vector<float>(values.size()));
      EXPECT_EQ(assign(cut.view(), histogram, fit, 1, indices).fidelity.count, rows * 300);
    }
  }
}

}  // namespace
}  // namespace hxq
