#include "codec/low_rank_terms.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include "io/half.h"

namespace hxq {
namespace {

/// A matrix of floats and what it is made of.
struct Floats {
  int64_t rows, cols;
  std::vector<float> values;

  Floats(int64_t of_rows, int64_t of_cols, uint64_t seed, float deviation = 0.02f) : rows(of_rows), cols(of_cols) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, deviation);
    for (int64_t i = 0; i < rows * cols; ++i) values.push_back(normal(random));
  }
  float& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  Weights weights() const { return Weights({DType::f32, {rows, cols}, std::as_bytes(std::span(values))}); }
};

Floats with_column_offsets() {
  Floats matrix(700, 96, 1);
  for (int64_t c = 0; c < 5; ++c) {
    for (int64_t r = 0; r < matrix.rows; ++r) matrix.at(r, 17 * c) += 0.3f - 0.15f * static_cast<float>(c);
  }
  return matrix;
}

Floats with_row_offsets() {
  Floats matrix(96, 700, 2);
  for (int64_t r = 0; r < 96; r += 20) {
    for (int64_t c = 0; c < matrix.cols; ++c) matrix.at(r, c) += 0.2f;
  }
  return matrix;
}

Floats with_pair() {
  Floats matrix(300, 200, 3);
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t c = 0; c < matrix.cols; ++c) {
      matrix.at(r, c) +=
          0.05f * static_cast<float>(std::sin(0.7 * static_cast<double>(r)) * std::cos(1.3 * static_cast<double>(c)));
    }
  }
  return matrix;
}

double squares(const Weights& weights) {
  std::vector<float> values(static_cast<size_t>(weights.size()));
  weights.read(0, values);
  return std::transform_reduce(values.begin(), values.end(), 0.0, std::plus<>(), [](double x) { return x * x; });
}

/// Squared singular values, largest first: Jacobi's rotations on W Wt.
std::vector<double> squared_singular_values(const Floats& matrix) {
  const auto n = static_cast<size_t>(matrix.rows);
  std::vector<std::vector<double>> a(n, std::vector<double>(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      for (int64_t c = 0; c < matrix.cols; ++c) {
        const auto cols = static_cast<size_t>(matrix.cols), at = static_cast<size_t>(c);
        a[i][j] += static_cast<double>(matrix.values[i * cols + at]) * matrix.values[j * cols + at];
      }
    }
  }
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (size_t p = 0; p < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        if (a[p][q] == 0) continue;
        const double theta = 0.5 * std::atan2(2 * a[p][q], a[q][q] - a[p][p]);
        const double c = std::cos(theta), s = std::sin(theta);
        for (size_t k = 0; k < n; ++k) {
          const double x = a[k][p], y = a[k][q];
          a[k][p] = c * x - s * y, a[k][q] = s * x + c * y;
        }
        for (size_t k = 0; k < n; ++k) {
          const double x = a[p][k], y = a[q][k];
          a[p][k] = c * x - s * y, a[q][k] = s * x + c * y;
        }
      }
    }
  }
  std::vector<double> values;
  for (size_t i = 0; i < n; ++i) values.push_back(a[i][i]);
  std::ranges::sort(values, std::greater<>());
  return values;
}

constexpr ProposalTerms kTerms{.outliers_now = 0.001, .outliers_then = 0.001, .least_gain = 1.1};

TEST(ProposeTerm, FindsWhatAMatrixHas) {
  const Floats columns = with_column_offsets(), rows = with_row_offsets(), pair = with_pair();
  const auto of_columns = propose_term(columns.weights(), kTerms);
  ASSERT_TRUE(of_columns.has_value());
  EXPECT_NE(of_columns->kind, TermProposal::Kind::row_means);
  const auto of_rows = propose_term(rows.weights(), kTerms);
  ASSERT_TRUE(of_rows.has_value());
  EXPECT_NE(of_rows->kind, TermProposal::Kind::column_means);
  const auto of_pair = propose_term(pair.weights(), kTerms);
  ASSERT_TRUE(of_pair.has_value());
  EXPECT_EQ(of_pair->kind, TermProposal::Kind::leading_pair);
}

TEST(ProposeTerm, FindsNothingInNoise) {
  for (uint64_t seed = 10; seed < 20; ++seed) {
    EXPECT_FALSE(propose_term(Floats(500, 300, seed).weights(), kTerms).has_value()) << seed;
  }
}

// One weight that is far away makes most of the leading pair, but outliers take care of it.
TEST(ProposeTerm, FindsNothingInOutliers) {
  Floats matrix(500, 300, 21);
  matrix.at(123, 45) = 9;
  EXPECT_FALSE(propose_term(matrix.weights(), kTerms).has_value());
}

TEST(RankOneTerm, MeansAreTheMeans) {
  const Floats matrix = with_column_offsets();
  const auto term = rank_one_term(matrix.weights(), {.kind = TermProposal::Kind::column_means, .start = {}}, 2);
  ASSERT_TRUE(term.has_value());
  for (const uint16_t half : stored_factors(*term).u) EXPECT_EQ(half, 0x3c00);  // 1
  double largest = 0;
  std::vector<double> means(static_cast<size_t>(matrix.cols));
  for (size_t i = 0; i < matrix.values.size(); ++i) means[i % means.size()] += matrix.values[i] / 700.0;
  for (const double mean : means) largest = std::max(largest, std::abs(mean));
  for (size_t c = 0; c < means.size(); ++c) {
    EXPECT_NEAR(static_cast<double>(term->u_scaled[0]) * term->vt[c], means[c], largest * 0x1p-11);
  }
}

// What a pair leaves is what the other singular values say, but for the rounding of the factors to binary16: at most
// 2^-11 of each, twice.
TEST(LeadingPair, LeavesTheOtherSingularValues) {
  Floats matrix = with_pair();
  matrix.rows = 60;
  matrix.values.resize(static_cast<size_t>(60 * matrix.cols));
  const std::vector<double> values = squared_singular_values(matrix);
  double left = std::accumulate(values.begin(), values.end(), 0.0);
  Weights rest = matrix.weights();
  EXPECT_NEAR(squares(rest), left, 1e-9 * left);
  // The second is close to the third: power iteration finds a mixture of them that takes nearly as much.
  for (const auto& [rank, slack] : {std::pair(0, 1e-4), {1, 0.02}}) {
    const auto pair = leading_pair(rest, 1);
    ASSERT_TRUE(pair.has_value());
    rest = rest.less(*pair);
    left -= values[static_cast<size_t>(rank)];
    EXPECT_GT(squares(rest), left * (1 - 1e-6));
    EXPECT_LT(squares(rest), left * (1 + slack) + values[0] * 0x1p-21);
  }
}

TEST(LeadingPair, IsTheSameForAnyNumberOfThreads) {
  const Floats matrix = with_pair();
  const auto one = leading_pair(matrix.weights(), 1);
  ASSERT_TRUE(one.has_value());
  for (const int threads : {2, 3, 16}) {
    const auto several = leading_pair(matrix.weights(), threads);
    ASSERT_TRUE(several.has_value());
    EXPECT_EQ(several->u_scaled, one->u_scaled);
    EXPECT_EQ(several->vt, one->vt);
  }
}

TEST(LeadingPair, OfWhatHasNone) {
  EXPECT_FALSE(leading_pair(Floats(8, 40, 1, 0).weights(), 1).has_value());
  for (const float unit : {1e-38f, 1e35f}) {  // factors would not be normal floats
    Floats matrix = with_pair();
    for (float& value : matrix.values) value *= unit;
    EXPECT_FALSE(leading_pair(matrix.weights(), 1).has_value()) << unit;
  }
}

TEST(StoredFactors, StandForTheTerm) {
  const Floats matrix = with_pair();
  Weights weights = matrix.weights();
  for (int i = 0; i < 3; ++i) weights = weights.less(*leading_pair(weights, 1));
  const LowRank& term = weights.term();
  const StoredFactors stored = stored_factors(term);
  ASSERT_EQ(stored.u.size(), 300u * 3);
  ASSERT_EQ(stored.s.size(), 3u);
  ASSERT_EQ(stored.vt.size(), 3u * 200);
  const size_t bytes = 2 * (stored.u.size() + stored.vt.size()) + 4 * stored.s.size();
  EXPECT_EQ(static_cast<int64_t>(bytes), low_rank_bytes(3, {300, 200}));
  for (const float scale : stored.s) {
    int exponent = 0;
    EXPECT_EQ(std::frexp(scale, &exponent), 0.5f);
  }
  for (size_t i = 0; i < term.u_scaled.size(); ++i) {
    ASSERT_EQ(float_from_f16(stored.u[i]) * stored.s[i % 3], term.u_scaled[i]) << i;
  }
  for (size_t i = 0; i < term.vt.size(); ++i) ASSERT_EQ(float_from_f16(stored.vt[i]), term.vt[i]) << i;
}

TEST(Weights, AreTheSourceLessTheTerm) {
  std::mt19937 random(5);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    constexpr int64_t kRows = 7, kCols = 13;
    std::vector<std::byte> bytes(kRows * kCols * size_of(dtype) + 1);  // one more: unaligned
    std::vector<float> source;
    for (size_t i = 0; i < kRows * kCols; ++i) {
      const float value = float_from_bf16(static_cast<uint16_t>(0x3c00 + random() % 0x100 + (random() % 2 << 15)));
      const auto half = dtype == DType::f16 ? f16_from_float(value) : bf16_from_float(value);
      std::memcpy(bytes.data() + 1 + i * size_of(dtype), dtype == DType::f32 ? static_cast<const void*>(&value) : &half,
                  size_of(dtype));
      source.push_back(dtype == DType::f16 ? float_from_f16(half) : value);
    }
    LowRank term{.rank = 2, .u_scaled = {}, .vt = {}};
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < 2 * kRows; ++i) term.u_scaled.push_back(normal(random));
    for (int64_t i = 0; i < 2 * kCols; ++i) term.vt.push_back(normal(random));
    const Weights weights({dtype, {kRows, kCols}, std::span(bytes).subspan(1)}, term);
    EXPECT_FALSE(weights.in_16_bits());
    for (int64_t at = 0; at < kRows * kCols; ++at) {
      const auto r = static_cast<size_t>(at / kCols), c = static_cast<size_t>(at % kCols);
      double expected = source[static_cast<size_t>(at)];
      for (size_t n = 0; n < 2; ++n) expected -= static_cast<double>(term.u_scaled[2 * r + n]) * term.vt[n * kCols + c];
      EXPECT_EQ(weights.at(at), static_cast<float>(expected));
      float back = weights.at(at);
      weights.add_term(at, {&back, 1});
      EXPECT_NEAR(back, source[static_cast<size_t>(at)], 1e-6);
    }
    std::vector<float> run(20), original(20);
    weights.read(9, run);
    weights.read_source(9, original);
    for (int64_t i = 0; i < 20; ++i) {
      EXPECT_EQ(run[static_cast<size_t>(i)], weights.at(9 + i));
      EXPECT_EQ(original[static_cast<size_t>(i)], source[static_cast<size_t>(9 + i)]);
    }
  }
}

TEST(Weights, ReadsEveryHalf) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float expected = float_from_f16(half);
    const float found = Weights({DType::f16, {1, 1}, std::as_bytes(std::span(&half, 1))}).at(0);
    ASSERT_EQ(std::memcmp(&found, &expected, 4), 0) << bits;
  }
}

}  // namespace
}  // namespace hxq
