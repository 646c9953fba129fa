#include "codec/grouped/encode.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>
#include <map>

#include "codec/encode_test_data.h"
#include "codec/grouped/fit.h"
#include "codec/grouped/matrix.h"
#include "hxq/error.h"
#include "refusal.h"
#include "test_checkpoint.h"

namespace hxq {
namespace {

using testing::draw;
using testing::Matrix;

EncodedTensor encode(const TensorView& source, int bits, int64_t group, int threads = 1) {
  return kGroupedEncoder.encode(source, {.bits = bits, .group = group, .threads = threads});
}

/// What a reader makes of the parts.
std::unique_ptr<const StoredMatrix> stored(const EncodedTensor& encoded, const Shape& shape) {
  testing::TestCheckpoint files;
  for (const EncodedPart& part : encoded.parts) files.set("m." + part.suffix, part.dtype, part.shape, part.bytes);
  static std::vector<Checkpoint> opened;  // matrices point into them
  opened.push_back(files.open());
  EXPECT_EQ(codec_of(opened.back(), "m"), &kGroupedCodec);
  return read_matrix(opened.back(), "m", shape);
}

std::vector<float> decode(const StoredMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.cols));
  matrix.decode_rows(0, matrix.rows, out);
  return out;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

TEST(EncodeGrouped, WritesWhatTheCodecReads) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (int bits = 3; bits <= 8; ++bits) {
      for (const auto& [rows, cols, group] : {std::array<int64_t, 3>{40, 72, 32}, {3, 129, 16}, {70, 8, 64}}) {
        SCOPED_TRACE(fmt::format("{} bits, {} x {} in {}", bits, rows, cols, group));
        const Matrix source(dtype, rows, cols, draw("student3", static_cast<int>(rows * cols), 7));
        const EncodedTensor encoded = encode(source.view(), bits, group);
        const auto matrix = stored(encoded, {rows, cols});
        const auto& grouped = dynamic_cast<const GroupedMatrix&>(*matrix);
        EXPECT_EQ(grouped.bits(), bits);
        EXPECT_EQ(grouped.group, group);
        const std::vector<float> decoded = decode(*matrix);
        const Fidelity fidelity = compare(source.view(), decoded);
        EXPECT_NEAR(encoded.fidelity.squared_error, fidelity.squared_error, 1e-9 * fidelity.squared_error);
        EXPECT_NEAR(encoded.fidelity.dot, fidelity.dot, 1e-9 * fidelity.signal);
        EXPECT_NEAR(encoded.fidelity.max_error, fidelity.max_error, 1e-6 * fidelity.max_error);
        EXPECT_EQ(encoded.fidelity.count, rows * cols);
        int64_t bytes = 0;
        for (const EncodedPart& part : encoded.parts) bytes += static_cast<int64_t>(part.bytes.size());
        EXPECT_LE(bytes, kGroupedEncoder.expected_bytes({rows, cols}, {.bits = bits, .group = group}));
      }
    }
  }
}

TEST(EncodeGrouped, LevelsAreWholeNumbersInFewBits) {
  const std::map<int, float> largest = {{3, 127}, {4, 127}, {5, 2047}, {6, 2047}, {7, 32767}, {8, 32767}};
  for (const auto& [bits, limit] : largest) {
    const Matrix source(DType::f32, 64, 256, draw("gaussian", 64 * 256, 3));
    const auto matrix = stored(encode(source.view(), bits, 32), {64, 256});
    const std::vector<float>& levels = dynamic_cast<const GroupedMatrix&>(*matrix).levels;
    EXPECT_TRUE(std::ranges::is_sorted(levels));
    float top = 0;
    for (const float level : levels) {
      EXPECT_EQ(level, std::nearbyint(level));
      top = std::max(top, std::fabs(level));
    }
    EXPECT_LE(top, limit);
    EXPECT_GE(top, limit / 2);
  }
}

/// Every group's scale is the best of those that are stored, the levels being what they are; beside a matrix whose
/// groups have the scale that their largest weight asks for, as in formats of rounded blocks, that gains.
TEST(EncodeGrouped, UniformLevelsAreTheWholeNumbersOfAByte) {
  for (const char* distribution : {"gaussian", "laplace", "student3"}) {
    const std::vector<float> weights = draw(distribution, 64 * 256, 3);
    const Matrix source(DType::f32, 64, 256, weights);
    const EncodeOptions options{.bits = 8, .group = 32, .levels = Levels::uniform, .threads = 2};
    const EncodedTensor encoded = kGroupedEncoder.encode(source.view(), options);
    const auto matrix = stored(encoded, {64, 256});
    const auto& grouped = dynamic_cast<const GroupedMatrix&>(*matrix);
    for (int i = 0; i < 256; ++i) ASSERT_EQ(grouped.levels[static_cast<size_t>(i)], static_cast<float>(i - 128));
    const double error = squared_error(decode(*matrix), weights);
    EXPECT_NEAR(encoded.fidelity.squared_error, error, 1e-6 * error);
    double rounded_blocks = 0, best_stored = 0;
    for (size_t begin = 0; begin < weights.size(); begin += 32) {
      const auto error_at = [&](double unit) {
        double sum = 0;
        for (size_t i = begin; i < begin + 32; ++i) {
          const double level = std::clamp(std::nearbyint(weights[i] / unit), -128.0, 127.0);
          sum += (weights[i] - unit * level) * (weights[i] - unit * level);
        }
        return sum;
      };
      float largest = 0;
      for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::fabs(weights[i]));
      rounded_blocks += error_at(largest / 127.0);
      double least = DBL_MAX;
      for (const float unit : grouped.scale_levels) least = std::min(least, error_at(unit));
      best_stored += least;
    }
    EXPECT_LE(error, best_stored * (1 + 1e-5)) << distribution;
    EXPECT_LT(error, rounded_blocks) << distribution;
  }
  const Matrix zeros(DType::f32, 2, 32, std::vector<float>(64));
  const EncodeOptions of_six{.bits = 6, .group = 32, .levels = Levels::uniform};
  EXPECT_THROW(kGroupedEncoder.encode(zeros.view(), of_six), Error);
  const EncodeOptions of_eight{.bits = 8, .group = 32, .levels = Levels::uniform};
  EXPECT_EQ(decode(*stored(kGroupedEncoder.encode(zeros.view(), of_eight), {2, 32})), std::vector<float>(64));
}

TEST(EncodeGrouped, BytesDoNotDependOnThreads) {
  for (const int bits : {3, 8}) {
    const Matrix source(DType::bf16, 300, 512, draw("laplace", 300 * 512, 5));
    const EncodedTensor one = encode(source.view(), bits, 64), three = encode(source.view(), bits, 64, 3);
    for (size_t i = 0; i < one.parts.size(); ++i) EXPECT_EQ(one.parts[i].bytes, three.parts[i].bytes) << i;
    EXPECT_EQ(one.fidelity.squared_error, three.fidelity.squared_error);
    EXPECT_EQ(one.fidelity.dot, three.fidelity.dot);
  }
}

/// A weight as its group's scale makes it: at w / scale, counting scale^2.
struct Point {
  double x, weight;
};

/// The least squared error of k levels: the textbook recurrence, every split tried.
double exhaustive_error(std::vector<Point> points, int k) {
  std::ranges::sort(points, {}, &Point::x);
  const size_t n = points.size();
  std::vector<long double> weight(n + 1), sum(n + 1), square(n + 1);
  for (size_t i = 0; i < n; ++i) {
    weight[i + 1] = weight[i] + points[i].weight;
    sum[i + 1] = sum[i] + static_cast<long double>(points[i].weight) * points[i].x;
    square[i + 1] = square[i] + static_cast<long double>(points[i].weight) * points[i].x * points[i].x;
  }
  const auto error = [&](size_t begin, size_t end) {
    const long double s = sum[end] - sum[begin];
    return static_cast<double>(square[end] - square[begin] - s * s / (weight[end] - weight[begin]));
  };
  std::vector<double> best(n + 1, DBL_MAX), next(n + 1);
  best[0] = 0;
  for (int level = 0; level < k; ++level) {
    next[0] = 0;
    for (size_t end = 1; end <= n; ++end) {
      next[end] = DBL_MAX;
      for (size_t begin = 0; begin < end; ++begin) next[end] = std::min(next[end], best[begin] + error(begin, end));
    }
    best = next;
  }
  return best[n];
}

/// But for levels that are to fit a byte: rounding to these costs up to 0.02 dB.
TEST(EncodeGrouped, LevelsAreWithinAHundredthOfADecibelOfTheBestForTheScales) {
  for (const auto& [bits, rows, cols] :
       {std::array<int, 3>{3, 12, 64}, {4, 16, 64}, {5, 16, 64}, {6, 16, 64}, {8, 14, 64}}) {
    for (const char* distribution : {"gaussian", "laplace", "student3"}) {
      SCOPED_TRACE(fmt::format("{} bits, {}", bits, distribution));
      const std::vector<float> weights = draw(distribution, rows * cols, 11);
      const Matrix source(DType::f32, rows, cols, weights);
      const EncodedTensor encoded = encode(source.view(), bits, 32);
      const auto matrix = stored(encoded, {rows, cols});
      const auto& grouped = dynamic_cast<const GroupedMatrix&>(*matrix);
      std::vector<Point> points;
      for (int64_t i = 0; i < rows * cols; ++i) {
        const auto scale = static_cast<size_t>(grouped.scales[static_cast<size_t>(i / 32)]);
        const double unit = grouped.scale_levels[scale];
        points.push_back({weights[static_cast<size_t>(i)] / unit, unit * unit});
      }
      const double best = exhaustive_error(points, 1 << bits);
      EXPECT_LE(10 * std::log10(encoded.fidelity.squared_error / best), bits <= 4 ? 0.02 : 0.01);
    }
  }
}

TEST(EncodeGrouped, NoOtherStoredScaleIsBetterForAGroup) {
  for (const int bits : {3, 4, 6, 8}) {
    const std::vector<float> weights = draw("student3", 48 * 96, 13);
    const Matrix source(DType::f32, 48, 96, weights);
    const auto matrix = stored(encode(source.view(), bits, 32), {48, 96});
    const auto& grouped = dynamic_cast<const GroupedMatrix&>(*matrix);
    const auto error = [&](size_t group, float unit) {
      double sum = 0;
      for (size_t i = 32 * group; i < 32 * group + 32; ++i) {
        double least = DBL_MAX;
        for (const float level : grouped.levels) least = std::min(least, std::fabs(weights[i] - double{unit} * level));
        sum += least * least;
      }
      return sum;
    };
    for (size_t group = 0; group < grouped.scales.size(); ++group) {
      const double chosen = error(group, grouped.scale_levels[static_cast<size_t>(grouped.scales[group])]);
      for (const float unit : grouped.scale_levels) ASSERT_LE(chosen, error(group, unit) * (1 + 1e-5)) << bits;
    }
  }
}

/// Every scale of the grid is tried here, in double, also those that no group has in the end.
TEST(ScaleSearch, FindsTheBestScaleOfTheGrid) {
  for (int bits = 3; bits <= 8; ++bits) {
    GroupSample sample;
    sample.weights = draw("laplace", 200 * 32, 17);
    for (size_t i = 1; i <= 200; ++i) sample.ends.push_back(32 * i);
    const GroupedFit fit = fit_groups(sample, 0.01f, 0.3f, {.bits = bits}, 1);
    const std::vector<float> scales = fit.scales();
    const ScaleSearch search(fit.levels, scales);
    for (size_t i = 0; i < sample.size(); ++i) {
      double least = DBL_MAX;
      for (const float unit : scales) {
        double sum = 0;
        for (const float w : sample.group(i)) {
          const auto above = std::ranges::lower_bound(fit.levels, w / unit);
          double distance = DBL_MAX;
          if (above != fit.levels.end()) distance = std::fabs(w - double{unit} * *above);
          if (above != fit.levels.begin()) distance = std::min(distance, std::fabs(w - double{unit} * above[-1]));
          sum += distance * distance;
        }
        least = std::min(least, sum);
      }
      const ScaleRange all = {0, static_cast<int>(scales.size())};
      const auto [scale, error] = search.best(sample.group(i), all, false, true);
      ASSERT_LE(error, least * (1 + 1e-5)) << bits << " bits, group " << i;
      ASSERT_EQ(error, search.error(sample.group(i), scale, false));
      std::vector<float> turned(sample.group(i).begin(), sample.group(i).end());
      for (float& w : turned) w = -w;
      const auto negative = search.best(turned, all, true, true);
      ASSERT_EQ(negative.scale, scale);
      ASSERT_EQ(negative.error, error);
    }
  }
}

TEST(ScaleSteps, FindExtremesAndSumDifferences) {
  for (const ScaleSteps* steps : {&kScalarScaleSteps, &scale_steps()}) {
    for (size_t count = 1; count <= 150; ++count) {
      SCOPED_TRACE(fmt::format("{} weights", count));
      const std::vector<float> weights = draw("laplace", static_cast<int>(count), static_cast<unsigned>(count));
      const std::vector<float> decoded = draw("gaussian", static_cast<int>(count), static_cast<unsigned>(200 + count));
      const Extremes extremes = steps->extremes(weights.data(), count);
      ASSERT_EQ(extremes.least, std::ranges::min(weights));
      ASSERT_EQ(extremes.largest, std::ranges::max(weights));
      Differences expected;
      for (size_t i = 0; i < count; ++i) {
        const double w = 0.5 * weights[i], difference = w - decoded[i];
        expected.signal += w * w;
        expected.decoded += static_cast<double>(decoded[i]) * decoded[i];
        expected.error += difference * difference;
        expected.largest = std::max(expected.largest, static_cast<float>(std::fabs(difference)));
      }
      const Differences found = steps->compare(weights.data(), count, 0.5f, decoded.data());
      ASSERT_NEAR(found.signal, expected.signal, 1e-13 * expected.signal);
      ASSERT_NEAR(found.decoded, expected.decoded, 1e-13 * expected.decoded);
      ASSERT_NEAR(found.error, expected.error, 1e-13 * expected.error);
      ASSERT_FLOAT_EQ(found.largest, expected.largest);
    }
  }
}

/// Groups of all lengths, weights beyond all levels, and levels of every kind that has a way of its own.
TEST(ScaleSteps, AreTheSameOnEveryInstructionSet) {
  const ScaleSteps& steps = scale_steps();
  if (&steps == &kScalarScaleSteps) GTEST_SKIP() << "no instruction set with steps of its own";
  for (int bits = 3; bits <= 8; ++bits) {
    std::vector<float> levels = draw("laplace", 1 << bits, 31);
    for (size_t i = 0; i < levels.size(); ++i) {
      levels[i] = std::nearbyint(levels[i] * 1000);
      if (bits < 6 && bits % 2 == 1) levels[i] = static_cast<float>(5 * i + i % 3) - 20;  // few, well apart
      if (bits == 7) levels[i] = static_cast<float>(i) - 64;
    }
    if (bits == 6) levels[1] = levels[0];
    std::ranges::sort(levels);
    const std::vector<float> scales = {1e-3f};
    std::vector<float> inverses = {900, 1000, 1100, 20, 3000, 5e4f, 1e6f};
    for (int i = 1; i < 30; ++i) inverses.push_back(-400 * static_cast<float>(i));
    const ScaleSearch search(levels, scales);
    const LevelCells& cells = search.cells();
    ASSERT_TRUE(bits == 4 || (cells.few != nullptr) == (bits < 6));
    ASSERT_EQ(cells.is_whole, bits == 7);
    for (size_t count = 1; count <= 150; ++count) {
      SCOPED_TRACE(fmt::format("{} bits, {} weights", bits, count));
      const std::vector<float> weights = draw("cauchy", static_cast<int>(count), static_cast<unsigned>(100 + count));
      const auto [least, largest] = std::ranges::minmax(weights);
      const Extremes extremes = steps.extremes(weights.data(), count);
      ASSERT_EQ(std::pair(extremes.least, extremes.largest), std::pair(least, largest));
      for (size_t n = 1; n <= inverses.size(); ++n) {
        std::vector<float> expected(n), found(n);
        kScalarScaleSteps.estimate(cells, weights.data(), count, inverses.data(), n, expected.data());
        steps.estimate(cells, weights.data(), count, inverses.data(), n, found.data());
        ASSERT_EQ(found, expected);
      }
      for (const float inverse : inverses) {
        ASSERT_EQ(steps.error(cells, weights.data(), count, 1 / inverse, inverse),
                  kScalarScaleSteps.error(cells, weights.data(), count, 1 / inverse, inverse));
        std::vector<uint8_t> expected(count), found(count);
        std::vector<float> expected_decoded(count), decoded(count);
        kScalarScaleSteps.quantize(cells, weights.data(), count, inverse, 0.3f, expected.data(),
                                   expected_decoded.data());
        steps.quantize(cells, weights.data(), count, inverse, 0.3f, found.data(), decoded.data());
        ASSERT_EQ(found, expected);
        ASSERT_EQ(decoded, expected_decoded);
        const auto sums_of = [&](const ScaleSteps& of) {
          const Differences sums = of.compare(weights.data(), count, 0.5f, decoded.data());
          return std::array{sums.signal, sums.decoded, sums.error, double{sums.largest}};
        };
        ASSERT_EQ(sums_of(steps), sums_of(kScalarScaleSteps));
      }
    }
  }
}

TEST(EncodeGrouped, AWideMatrixIsSampledAndLosesLittle) {
  const std::vector<float> weights = draw("gaussian", 1024 * 1024, 19);
  const Matrix source(DType::f32, 1024, 1024, weights);
  const EncodedTensor encoded = encode(source.view(), 4, 32, 2);
  const auto matrix = stored(encoded, {1024, 1024});
  EXPECT_NEAR(squared_error(decode(*matrix), weights), encoded.fidelity.squared_error,
              1e-9 * encoded.fidelity.squared_error);
  // Normal weights with 16 levels and no scales at all have 20.22 dB (Max 1960); scales of 32 weights are worth 2 dB.
  EXPECT_GT(encoded.fidelity.snr_db(), 22.2);
}

TEST(EncodeGrouped, TakesWhatIsOutOfTheOrdinary) {
  const auto round_trip = [](std::vector<float> weights, int64_t cols, double loss) {
    const auto rows = static_cast<int64_t>(weights.size()) / cols;
    const Matrix source(DType::f32, rows, cols, weights);
    for (const int bits : {3, 4, 8}) {
      const EncodedTensor encoded = encode(source.view(), bits, 32);
      const std::vector<float> decoded = decode(*stored(encoded, {rows, cols}));
      double signal = 0;
      for (const float w : weights) signal += double{w} * w;
      EXPECT_LE(squared_error(decoded, weights), loss * signal) << bits;
    }
  };
  round_trip(std::vector<float>(64, 0.0f), 32, 0);
  round_trip(std::vector<float>(64, 0.3f), 32, 1e-4);
  round_trip(std::vector<float>(64, -0.3f), 32, 1e-4);
  round_trip({0.25f}, 1, 1e-4);
  round_trip({-1, 1, -1, 1, 1, -1, 1, 1}, 4, 1e-4);
  for (const float unit : {1e-44f, 1e-38f, 1e-20f, 1e20f, 6e37f}) {
    std::vector<float> weights = draw("gaussian", 4 * 96, 23);
    for (float& w : weights) w = w * 50 * unit;
    round_trip(weights, 96, unit < 1e-40f ? 1 : 0.1 /* no scale is that small */);
  }
  std::vector<float> sparse(40 * 64, 0.0f);
  sparse[777] = FLT_MAX;
  round_trip(sparse, 64, 1e-3);
  std::vector<float> spread = draw("gaussian", 32 * 64, 29);
  for (size_t i = 0; i < spread.size(); ++i) spread[i] *= std::pow(10.0f, -static_cast<float>(i / 64));
  round_trip(spread, 64, 0.1);
}

TEST(EncodeGrouped, RefusesWhatItCannotEncode) {
  const auto refusal = [](const TensorView& source, int bits, int64_t group) {
    return testing::refusal([&] { encode(source, bits, group); });
  };
  std::vector<float> weights(64, 1);
  const Matrix good(DType::f32, 2, 32, weights);
  EXPECT_NE(refusal(good.view(), 2, 32).find("2 bits, expected 3 to 8"), std::string::npos);
  EXPECT_NE(refusal(good.view(), 9, 32).find("9 bits, expected 3 to 8"), std::string::npos);
  EXPECT_NE(refusal(good.view(), 4, 12).find("a multiple of 8"), std::string::npos);
  EXPECT_NE(refusal(good.view(), 4, 0).find("a multiple of 8"), std::string::npos);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    weights[40] = bad;
    const Matrix source(DType::f32, 2, 32, weights);
    EXPECT_NE(refusal(source.view(), 4, 32).find("1 of 64 values are not finite"), std::string::npos);
  }
}

}  // namespace
}  // namespace hxq
