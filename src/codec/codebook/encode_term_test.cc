// The low-rank term that is encoded where it pays.

#include <gtest/gtest.h>

#include <cmath>

#include "codec/codebook/encode.h"
#include "codec/encode_test_data.h"
#include "decoded_snr.h"
#include "hxq/error.h"

namespace hxq {
namespace {

using testing::Matrix;

int64_t rank_of(const EncodedTensor& encoded) {
  for (const EncodedPart& part : encoded.parts) {
    if (part.suffix == "svd_s") return part.shape[0];
  }
  return 0;
}

double bits_of(const EncodedTensor& encoded, const TensorView& source) {
  size_t bytes = 0;
  for (const EncodedPart& part : encoded.parts) bytes += part.bytes.size();
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(source.size());
}

/// Error that bits would buy at 6 dB each left out.
double cost_of(const EncodedTensor& encoded, const TensorView& source) {
  return encoded.fidelity.squared_error * std::exp2(2 * bits_of(encoded, source));
}

// By the format's definition, in double.
void expect_right_fidelity(const EncodedTensor& encoded, const TensorView& source) {
  const std::vector<double> decoded = testing::decoded_values(encoded);
  const std::vector<float> weights = to_float(source);
  double error = 0, largest = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double difference = std::abs(weights[i] - static_cast<double>(static_cast<float>(decoded[i])));
    error += difference * difference;
    largest = std::max(largest, difference);
  }
  EXPECT_NEAR(encoded.fidelity.squared_error, error, 1e-9 * error);
  EXPECT_EQ(encoded.fidelity.max_error, largest);
  EXPECT_EQ(encoded.fidelity.count, source.size());
}

constexpr int64_t kRows = 900, kCols = 640;

std::vector<float> noise(const char* distribution) {
  return testing::draw(distribution, static_cast<int>(kRows * kCols), 71);
}

/// Seven columns far from zero.
std::vector<float> column_offsets() {
  std::vector<float> values = noise("gaussian");
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t col = i % kCols;
    if (col % 97 == 5) values[i] += 0.4f - 0.002f * static_cast<float>(col);
  }
  return values;
}

std::vector<float> row_offsets() {
  std::vector<float> values = noise("laplace");
  for (size_t i = 0; i < values.size(); ++i) {
    if (i / kCols % 150 == 3) values[i] -= 0.3f;
  }
  return values;
}

/// Two pairs of one size, so that no single one will do.
std::vector<float> two_pairs() {
  std::vector<float> values = noise("gaussian");
  for (size_t i = 0; i < values.size(); ++i) {
    const auto r = static_cast<double>(i / kCols), c = static_cast<double>(i % kCols);
    values[i] +=
        static_cast<float>(0.05 * std::sin(0.3 * r) * std::cos(1.1 * c) + 0.05 * std::cos(0.3 * r) * std::sin(2.3 * c));
  }
  return values;
}

class EveryType : public ::testing::TestWithParam<DType> {};

TEST_P(EveryType, OffsetsAreATermOfTheirOwn) {
  for (const auto& values : {column_offsets(), row_offsets(), two_pairs()}) {
    const Matrix matrix(GetParam(), kRows, kCols, values);
    const EncodedTensor plain = encode_codebook(matrix.view(), {.low_rank = 0});
    const EncodedTensor encoded = encode_codebook(matrix.view(), {});
    EXPECT_EQ(rank_of(plain), 0);
    EXPECT_GE(rank_of(encoded), 1);
    EXPECT_LE(bits_of(encoded, matrix.view()), bits_of(plain, matrix.view()) + kTermBits);
    EXPECT_LT(encoded.fidelity.squared_error, 0.9 * plain.fidelity.squared_error);
    expect_right_fidelity(plain, matrix.view());
    expect_right_fidelity(encoded, matrix.view());
    // No rank with as many outliers as there is room for is better by more than what a term must gain.
    for (int rank = 0; rank <= 2; ++rank) {
      const auto term_bytes = static_cast<double>(rank * (2 * (kRows + kCols) + 4));
      const double room = (12 * 0.001 + kTermBits / 8) * kRows * kCols - term_bytes;
      if (room < 0) break;
      const CodebookOptions options{.sidecar_fraction = std::min(0.001, room / 12 / (kRows * kCols)), .low_rank = rank};
      EXPECT_LT(cost_of(encoded, matrix.view()), 1.1 * cost_of(encode_codebook(matrix.view(), options), matrix.view()));
    }
  }
}

TEST_P(EveryType, NoiseHasNoTerm) {
  for (const char* distribution : {"gaussian", "laplace", "student3", "cauchy", "uniform"}) {
    const Matrix matrix(GetParam(), kRows, kCols, noise(distribution));
    const EncodedTensor plain = encode_codebook(matrix.view(), {.low_rank = 0});
    const EncodedTensor encoded = encode_codebook(matrix.view(), {});
    ASSERT_EQ(encoded.parts.size(), plain.parts.size()) << distribution;
    for (size_t i = 0; i < plain.parts.size(); ++i) EXPECT_TRUE(encoded.parts[i].bytes == plain.parts[i].bytes);
  }
}

TEST_P(EveryType, IsTheSameForAnyNumberOfThreads) {
  const Matrix matrix(GetParam(), kRows, kCols, column_offsets());
  const EncodedTensor one = encode_codebook(matrix.view(), {.threads = 1});
  ASSERT_EQ(rank_of(one), 1);
  for (const int threads : {2, 3}) {
    const EncodedTensor several = encode_codebook(matrix.view(), {.threads = threads});
    ASSERT_EQ(several.parts.size(), one.parts.size());
    for (size_t i = 0; i < one.parts.size(); ++i) EXPECT_TRUE(several.parts[i].bytes == one.parts[i].bytes) << i;
    EXPECT_EQ(several.fidelity.squared_error, one.fidelity.squared_error);
  }
}

INSTANTIATE_TEST_SUITE_P(EncodeTerm, EveryType, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

TEST(EncodeTerm, HasTheRankThatIsAskedFor) {
  const Matrix matrix(DType::f32, 40, 30, testing::draw("gaussian", 40 * 30, 72));
  double before = INFINITY;
  for (const int rank : {0, 1, 2, 5, 30, 64}) {
    const EncodedTensor encoded = encode_codebook(matrix.view(), {.sidecar_fraction = 0, .low_rank = rank});
    EXPECT_EQ(rank_of(encoded), std::min(rank, 30));
    expect_right_fidelity(encoded, matrix.view());
    if (rank == 0 || rank == 30) {
      EXPECT_LT(encoded.fidelity.squared_error, before);
      before = encoded.fidelity.squared_error;
    }
  }
}

TEST(EncodeTerm, SmallMatricesHaveNoRoomForOne) {
  std::vector<float> values = testing::draw("gaussian", 100 * 100, 73);
  for (size_t i = 0; i < values.size(); i += 100) values[i] += 0.5f;
  const Matrix matrix(DType::f32, 100, 100, values);
  EXPECT_EQ(rank_of(encode_codebook(matrix.view(), {})), 0);
}

TEST(EncodeTerm, RefusesOtherRanks) {
  const Matrix matrix(DType::f32, 4, 4, std::vector<float>(16, 1.0f));
  EXPECT_THROW(encode_codebook(matrix.view(), {.low_rank = -1}), Error);
  EXPECT_THROW(encode_codebook(matrix.view(), {.low_rank = 65}), Error);
}

}  // namespace
}  // namespace hxq
