// The low-rank term that is encoded beside groups where it pays.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "codec/encode_test_data.h"
#include "codec/grouped/encode.h"
#include "codec/grouped/matrix.h"
#include "hxq/error.h"
#include "test_checkpoint.h"

namespace hxq {
namespace {

using testing::draw;
using testing::Matrix;

int64_t rank_of(const EncodedTensor& encoded) {
  for (const EncodedPart& part : encoded.parts) {
    if (part.suffix == "svd_s") return part.shape[0];
  }
  return 0;
}

std::vector<float> decode(const EncodedTensor& encoded, const Shape& shape) {
  testing::TestCheckpoint files;
  for (const EncodedPart& part : encoded.parts) files.set("m." + part.suffix, part.dtype, part.shape, part.bytes);
  const Checkpoint checkpoint = files.open();
  std::vector<float> out(static_cast<size_t>(shape[0] * shape[1]));
  read_matrix(checkpoint, "m", shape)->decode_rows(0, shape[0], out);
  return out;
}

/// A matrix in double.
struct Values {
  size_t rows, cols;
  std::vector<double> at;
};

/// W less u v^T.
Values less(const Values& w, const std::vector<double>& u, const std::vector<double>& v) {
  Values rest = w;
  for (size_t i = 0; i < rest.at.size(); ++i) rest.at[i] -= u[i / w.cols] * v[i % w.cols];
  return rest;
}

/// W less the means of its columns, of its rows, and its leading singular pair.
std::vector<Values> rests_of(const Values& w) {
  std::vector<double> columns(w.cols), rows(w.rows), u(w.rows), v(w.cols);
  for (size_t i = 0; i < w.at.size(); ++i) {
    columns[i % w.cols] += w.at[i] / static_cast<double>(w.rows);
    rows[i / w.cols] += w.at[i] / static_cast<double>(w.cols);
  }
  for (size_t c = 0; c < w.cols; ++c) v[c] = 1 + static_cast<double>(c % 7);
  for (int step = 0; step < 300; ++step) {
    double length = 0;
    for (const double x : v) length += x * x;
    for (double& x : v) x /= std::sqrt(length);
    u.assign(w.rows, 0);
    for (size_t i = 0; i < w.at.size(); ++i) u[i / w.cols] += w.at[i] * v[i % w.cols];
    if (step == 299) break;
    v.assign(w.cols, 0);
    for (size_t i = 0; i < w.at.size(); ++i) v[i % w.cols] += w.at[i] * u[i / w.cols];
  }
  return {less(w, std::vector<double>(w.rows, 1), columns), less(w, rows, std::vector<double>(w.cols, 1)),
          less(w, u, v)};
}

/// The error of the weights coded without a term, times what the bits of that rank would take off by smaller groups.
double cost_of(const Values& rest, int rank, const EncodeOptions& options) {
  std::vector<float> values(rest.at.begin(), rest.at.end());
  const Matrix matrix(DType::f32, static_cast<int64_t>(rest.rows), static_cast<int64_t>(rest.cols), values);
  EncodeOptions plain = options;
  plain.low_rank = 0;
  const double bits =
      8.0 * rank * (2 * static_cast<double>(rest.rows + rest.cols) + 4) / static_cast<double>(rest.at.size());
  return kGroupedEncoder.encode(matrix.view(), plain).fidelity.squared_error * std::pow(10, 0.8 * bits);
}

/// The least cost of every choice of up to two terms.
double least_cost(const Values& w, const EncodeOptions& options) {
  double least = cost_of(w, 0, options);
  for (const Values& rest : rests_of(w)) {
    least = std::min(least, cost_of(rest, 1, options));
    for (const Values& further : rests_of(rest)) least = std::min(least, cost_of(further, 2, options));
  }
  return least;
}

constexpr size_t kRows = 320, kCols = 192;

Values noise(const char* distribution) {
  const std::vector<float> drawn = draw(distribution, kRows * kCols, 71);
  return {kRows, kCols, {drawn.begin(), drawn.end()}};
}

/// Two columns far from zero.
Values column_offsets() {
  Values w = noise("gaussian");
  for (size_t i = 0; i < w.at.size(); ++i) w.at[i] += i % kCols % 97 == 5 ? 0.3 : 0;
  return w;
}

Values row_offsets() {
  Values w = noise("laplace");
  for (size_t i = 0; i < w.at.size(); ++i) w.at[i] -= i / kCols % 3 == 1 ? 0.06 : 0;
  return w;
}

/// Two pairs of one size.
Values two_pairs() {
  Values w = noise("gaussian");
  for (size_t i = 0; i < w.at.size(); ++i) {
    const auto r = static_cast<double>(i / kCols), c = static_cast<double>(i % kCols);
    w.at[i] += 0.05 * std::sin(0.3 * r) * std::cos(1.1 * c) + 0.05 * std::cos(0.3 * r) * std::sin(2.3 * c);
  }
  return w;
}

TEST(EncodeGroupedTerm, NoOtherChoiceIsMuchBetter) {
  for (const EncodeOptions& options :
       {EncodeOptions{.bits = 4, .group = 32, .threads = 1}, EncodeOptions{.bits = 8, .group = 64, .threads = 1}}) {
    for (const auto& [w, rank] :
         {std::pair{column_offsets(), 1}, {row_offsets(), 1}, {two_pairs(), 2}, {noise("student3"), 0}}) {
      SCOPED_TRACE(fmt::format("{} bits, rank {}", options.bits, rank));
      const Matrix matrix(DType::f32, kRows, kCols, {w.at.begin(), w.at.end()});
      const EncodedTensor encoded = kGroupedEncoder.encode(matrix.view(), options);
      ASSERT_EQ(rank_of(encoded), rank);
      const Fidelity fidelity = compare(matrix.view(), decode(encoded, {kRows, kCols}));
      EXPECT_NEAR(encoded.fidelity.squared_error, fidelity.squared_error, 1e-9 * fidelity.squared_error);
      EXPECT_NEAR(encoded.fidelity.dot, fidelity.dot, 1e-9 * fidelity.signal);
      EXPECT_NEAR(encoded.fidelity.max_error, fidelity.max_error, 1e-6 * fidelity.max_error);
      const double bits = 8.0 * rank * (2.0 * (kRows + kCols) + 4) / (kRows * kCols);
      const double cost = fidelity.squared_error * std::pow(10, 0.8 * bits), least = least_cost(w, options);
      EXPECT_LT(cost, 1.05 * least);
    }
  }
}

TEST(EncodeGroupedTerm, NoiseIsCodedAsWithoutOne) {
  for (const char* distribution : {"gaussian", "laplace", "student3", "cauchy", "uniform"}) {
    const Values w = noise(distribution);
    const Matrix matrix(DType::bf16, kRows, kCols, {w.at.begin(), w.at.end()});
    const EncodeOptions options{.bits = 6, .group = 32, .threads = 1};
    EncodeOptions without = options;
    without.low_rank = 0;
    const EncodedTensor plain = kGroupedEncoder.encode(matrix.view(), without);
    const EncodedTensor encoded = kGroupedEncoder.encode(matrix.view(), options);
    ASSERT_EQ(encoded.parts.size(), plain.parts.size()) << distribution;
    for (size_t i = 0; i < plain.parts.size(); ++i) EXPECT_TRUE(encoded.parts[i].bytes == plain.parts[i].bytes);
  }
}

TEST(EncodeGroupedTerm, IsTheSameForAnyNumberOfThreads) {
  const Values w = column_offsets();
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    const Matrix matrix(dtype, kRows, kCols, {w.at.begin(), w.at.end()});
    const EncodedTensor one = kGroupedEncoder.encode(matrix.view(), {.bits = 5, .group = 32, .threads = 1});
    ASSERT_EQ(rank_of(one), 1);
    const EncodedTensor three = kGroupedEncoder.encode(matrix.view(), {.bits = 5, .group = 32, .threads = 3});
    ASSERT_EQ(three.parts.size(), one.parts.size());
    for (size_t i = 0; i < one.parts.size(); ++i) EXPECT_TRUE(three.parts[i].bytes == one.parts[i].bytes) << i;
    EXPECT_EQ(three.fidelity.squared_error, one.fidelity.squared_error);
  }
}

TEST(EncodeGroupedTerm, HasTheRankThatIsAskedFor) {
  const Matrix matrix(DType::f32, 40, 30, draw("gaussian", 40 * 30, 72));
  double before = INFINITY;
  for (const int rank : {0, 1, 2, 5, 30, 64}) {
    const EncodeOptions options{.bits = 4, .group = 8, .threads = 1, .low_rank = rank};
    const EncodedTensor encoded = kGroupedEncoder.encode(matrix.view(), options);
    EXPECT_EQ(rank_of(encoded), std::min(rank, 30));
    const Fidelity fidelity = compare(matrix.view(), decode(encoded, {40, 30}));
    EXPECT_NEAR(encoded.fidelity.squared_error, fidelity.squared_error, 1e-9 * fidelity.squared_error + 1e-20);
    EXPECT_TRUE(rank > 30 ? fidelity.squared_error == before : fidelity.squared_error < before) << rank;
    before = fidelity.squared_error;
    for (const EncodedPart& part : encoded.parts) {
      bool planned = false;
      for (const PartPlan& plan : kGroupedEncoder.largest_parts({40, 30}, options)) {
        planned |= plan.suffix == part.suffix && element_count(plan.shape) >= element_count(part.shape);
      }
      EXPECT_TRUE(planned) << part.suffix;
    }
  }
  for (const int rank : {-1, 65}) {
    EXPECT_THROW(kGroupedEncoder.encode(matrix.view(), {.bits = 4, .group = 8, .low_rank = rank}), Error);
  }
}

TEST(EncodeGroupedTerm, WeightsThatHaveNoneAreCodedWithout) {
  for (const float unit : {0.0f, 1e-44f, 1e37f}) {
    std::vector<float> weights = draw("gaussian", 64 * 64, 73);
    for (float& w : weights) w = unit * (10 * w + 5);  // a mean that would be worth a term
    const Matrix matrix(DType::f32, 64, 64, weights);
    for (const std::optional<int> rank : {std::optional<int>{}, std::optional<int>{3}}) {
      const EncodedTensor encoded =
          kGroupedEncoder.encode(matrix.view(), {.bits = 8, .group = 64, .threads = 1, .low_rank = rank});
      EXPECT_EQ(rank_of(encoded), 0);
      EXPECT_NEAR(encoded.fidelity.squared_error, compare(matrix.view(), decode(encoded, {64, 64})).squared_error,
                  1e-6 * encoded.fidelity.squared_error);
    }
  }
  std::vector<float> weights(64, 1);
  weights[3] = NAN;
  const Matrix matrix(DType::f32, 2, 32, weights);
  EXPECT_THROW(kGroupedEncoder.encode(matrix.view(), {.bits = 4, .group = 32, .low_rank = 1}), Error);
}

}  // namespace
}  // namespace hxq
