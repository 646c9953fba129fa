#include <fmt/format.h>

#include "kernels/cpu/ops.h"
#include "kernels/kernels_test_data.h"

namespace hxq::kernels::testing {
namespace {

constexpr float kCanary = 12345.0f;

struct Call {
  int64_t tokens = 1;
  int64_t x_pad = 0;  ///< floats between rows of x, and of y
  int64_t y_pad = 0;
  bool bias = false;
  bool accumulate = false;
  int threads = 1;
};

/// How a kernel rounds x before it multiplies.
struct Rounding {
  enum Kind {
    none,
    token,  ///< to 16 bits, 24 if the largest |x| is over 32 times the mean square's root; the product of the low byte
            ///< of x with that of codes is estimated besides
    block,  ///< to 11 bits below the largest |x| of 64 columns
  };
  Kind kind = none;
  double code_scale = 0;  ///< what one unit of the codes stands for
};

Rounding rounding_of(const cpu::PreparedCodebook& weight, Target target, int64_t tokens) {
  if (target != Target::avx512 || !weight.planes().integer_levels || weight.stored().layout != IndexLayout::u8)
    return {};
  return {tokens <= 3                                    ? Rounding::token
          : tokens >= cpu::Ops::IntegerGemm::kFastTokens ? Rounding::block
                                                         : Rounding::none,
          weight.planes().scale};
}

/// Inputs of a product and, after `run`, its output; y starts as `before`.
struct Product {
  std::vector<float> x, before, bias, y;
  LinearArgs args;

  Product(int64_t rows, int64_t cols, const Call& call)
      : x(normal_floats(call.tokens * (cols + call.x_pad), 11)),
        before(normal_floats(call.tokens * (rows + call.y_pad), 12)),
        bias(normal_floats(rows, 13)) {
    for (size_t i = 0; i < before.size(); ++i) {
      if (static_cast<int64_t>(i) % (rows + call.y_pad) >= rows) before[i] = kCanary;
    }
    x.resize(x.size() - static_cast<size_t>(call.x_pad));  // nothing may be read past the last row
    y = before;
    args = {.x = x.data(),
            .x_stride = cols + call.x_pad,
            .y = y.data(),
            .y_stride = rows + call.y_pad,
            .tokens = call.tokens,
            .bias = call.bias ? bias.data() : nullptr,
            .accumulate = call.accumulate};
  }

  template <class Matrix>
  void run(const Matrix& matrix, Target target, int threads) {
    Scratch scratch(threads);
    run_team(threads, [&](const Team& team) { linear(matrix, args, {team, target, scratch}); });
  }

  /// What rounding x may change in a row of the product with xt: 8 standard deviations of as many errors, each
  /// uniform, but no more than all of them together. An estimate is off by at most half of 256, times 128.
  template <class WeightAt>
  static double rounding_bound(Rounding rounding, const float* xt, int64_t cols, WeightAt weight_at, int64_t row) {
    if (rounding.kind == Rounding::none) return 0;
    const int64_t block = rounding.kind == Rounding::block ? 64 : cols;
    double largest_square = 0, squares = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const double square = static_cast<double>(xt[c]) * xt[c];
      largest_square = std::max(largest_square, square);
      squares += square;
    }
    const bool spread = largest_square * static_cast<double>(cols) < 1025 * squares;
    const double step = rounding.kind == Rounding::block ? 1 / 1023.0 : spread ? 0x1p-14 : 0x1p-22;
    const double estimated = rounding.kind == Rounding::token ? 2 * 128 * 128 * rounding.code_scale : 0;
    double variance = 0, worst = 0;
    for (int64_t begin = 0; begin < cols; begin += block) {
      double largest = 0;
      const int64_t end = std::min(cols, begin + block);
      for (int64_t c = begin; c < end; ++c) largest = std::max<double>(largest, std::fabs(xt[c]));
      for (int64_t c = begin; c < end; ++c) {
        const double error = (std::fabs(weight_at(row, c)) + estimated) * largest * step / 2;
        variance += error * error / 3;
        worst += error;
      }
    }
    return std::min(8 * std::sqrt(variance), worst * 1.001);
  }

  /// Compares with sums in double. A float sum of n products is off by at most n eps sum |w||x|, usually by sqrt(n);
  /// rounding x adds to it.
  template <class WeightAt>
  void check(int64_t rows, int64_t cols, WeightAt weight_at, Rounding rounding = {}) const {
    for (int64_t t = 0; t < args.tokens; ++t) {
      const float* xt = args.x + t * args.x_stride;
      for (int64_t r = 0; r < rows; ++r) {
        double sum = 0, size = 0;
        for (int64_t c = 0; c < cols; ++c) {
          const double weight = weight_at(r, c);
          sum += weight * xt[c];
          size += std::fabs(weight * xt[c]);
        }
        const size_t at = static_cast<size_t>(t * args.y_stride + r);
        if (args.bias) sum += args.bias[r];
        if (args.accumulate) sum += before[at];
        const double others = (args.bias ? std::fabs(args.bias[r]) : 0) + (args.accumulate ? std::fabs(before[at]) : 0);
        const double bound =
            (4 + std::sqrt(cols)) * (size + others) * 0x1p-24 + rounding_bound(rounding, xt, cols, weight_at, r);
        ASSERT_NEAR(y[at], sum, std::max(bound, 1e-40)) << "token " << t << " row " << r;
      }
    }
    for (size_t i = 0; i < y.size(); ++i) {
      if (static_cast<int64_t>(i) % args.y_stride >= rows) {
        ASSERT_EQ(y[i], kCanary) << "between rows of y";
      }
    }
  }
};

class LinearTest : public ::testing::TestWithParam<Target> {
 protected:
  void expect_product(const TestMatrix& matrix, const Call& call) {
    SCOPED_TRACE(fmt::format("{} x {} tokens {}", matrix.view.rows, matrix.view.cols, call.tokens));
    Product product(matrix.view.rows, matrix.view.cols, call);
    product.run(*matrix.prepared, GetParam(), call.threads);
    product.check(
        matrix.view.rows, matrix.view.cols, [&](int64_t r, int64_t c) { return matrix.effective(r, c); },
        rounding_of(*matrix.prepared, GetParam(), call.tokens));
  }
};

constexpr int64_t kRowCounts[] = {1, 3, 4, 5, 14, 15, 29, 70};
constexpr int64_t kColCounts[] = {1, 7, 48, 63, 64, 65, 127, 200, 769};
constexpr int64_t kTokenCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 130};

TEST_P(LinearTest, ProductsOfAllShapes) {
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
    SCOPED_TRACE(name_of(levels));
    for (const int64_t rows : kRowCounts) {
      for (const int64_t cols : kColCounts) {
        const TestMatrix matrix({.rows = rows, .cols = cols, .levels = levels});
        for (const int64_t tokens : kTokenCounts) {
          expect_product(matrix, {.tokens = tokens,
                                  .x_pad = rows % 3,
                                  .y_pad = cols % 2,
                                  .bias = tokens % 2 == 1,
                                  .accumulate = rows % 2 == 1});
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Matrices that are decoded in several pieces, for many tokens.
TEST_P(LinearTest, ProductsOfSeveralPieces) {
  const TestMatrix matrix({.rows = 131, .cols = 4230, .levels = Levels::integer});
  for (const int threads : {1, 2}) {
    expect_product(matrix,
                   {.tokens = 131, .x_pad = 3, .y_pad = 1, .bias = true, .accumulate = true, .threads = threads});
  }
}

// What rounding x may cost at most, whatever x is: here one value in 64 is far above the others.
TEST_P(LinearTest, SpikesInInputsCostLessThanTheLevelsDo) {
  constexpr int64_t kRows = 64, kCols = 1600;
  const TestMatrix matrix({.rows = kRows, .cols = kCols, .levels = Levels::integer, .sidecar = 0});
  double weights = 0;
  for (const float weight : matrix.weights) weights += static_cast<double>(weight) * weight;
  for (const float spike : {1.0f, 30.0f, 300.0f, 3000.0f}) {
    for (const int64_t tokens : {1, 3, 130}) {
      Product product(kRows, kCols, {.tokens = tokens});
      const size_t spiky = (tokens == 3 ? 1 : static_cast<size_t>(tokens)) * kCols;  // of three tokens the first
      for (size_t i = 0; i < spiky; i += 64) product.x[i] *= spike;
      product.run(*matrix.prepared, GetParam(), 1);
      double error = 0, inputs = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        const float* x = product.args.x + t * kCols;
        for (int64_t c = 0; c < kCols; ++c) inputs += static_cast<double>(x[c]) * x[c];
        for (int64_t r = 0; r < kRows; ++r) {
          double sum = 0;
          for (int64_t c = 0; c < kCols; ++c) sum += matrix.effective(r, c) * x[c];
          error += std::pow(sum - product.y[static_cast<size_t>(t * kRows + r)], 2);
        }
      }
      // Of |x|^2 times the mean square of the weights, for every row.
      EXPECT_LT(10 * std::log10(error / (inputs * weights / kCols)), -52) << "spike " << spike << " tokens " << tokens;
    }
  }
}

TEST_P(LinearTest, AllLayoutsAndCodewords) {
  struct Form {
    IndexLayout layout;
    int32_t k, d;
  };
  for (const Form form : {Form{IndexLayout::u8, 17, 1},
                          {IndexLayout::u8, 1, 1},
                          {IndexLayout::u8, 200, 2},
                          {IndexLayout::u8, 256, 4},
                          {IndexLayout::u16, 300, 1},
                          {IndexLayout::u16, 5000, 2},
                          {IndexLayout::u16, 4096, 4},
                          {IndexLayout::packed12, 512, 1},
                          {IndexLayout::packed12, 4096, 2},
                          {IndexLayout::packed12, 4096, 4}}) {
    SCOPED_TRACE(fmt::format("layout {} k {} d {}", static_cast<int>(form.layout), form.k, form.d));
    for (const int64_t cols : {4, 12, 68, 260, 780}) {
      for (const int64_t rows : {2, 18}) {
        const TestMatrix matrix({.rows = rows, .cols = cols, .k = form.k, .d = form.d, .layout = form.layout});
        for (const int64_t tokens : {1, 5, 8, 9, 40}) expect_product(matrix, {.tokens = tokens, .bias = true});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(LinearTest, NoSidecar) {
  const TestMatrix matrix({.rows = 21, .cols = 130, .levels = Levels::half, .sidecar = 0});
  for (const int64_t tokens : {1, 9}) expect_product(matrix, {.tokens = tokens});
}

TEST_P(LinearTest, EveryWeightAnOutlier) {
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
    const TestMatrix matrix({.rows = 37, .cols = 130, .levels = levels, .sidecar = 1});
    for (const int64_t tokens : {1, 4, 9, 130}) expect_product(matrix, {.tokens = tokens, .threads = 2});
  }
}

TEST_P(LinearTest, LowRankTermAndChannelScales) {
  for (const int64_t tokens : {1, 3, 9, 40}) {
    for (const bool scales : {false, true}) {
      const TestMatrix matrix({.rows = 31, .cols = 100, .levels = Levels::half, .rank = 8, .channel_scales = scales});
      expect_product(matrix,
                     {.tokens = tokens, .x_pad = 4, .y_pad = 1, .bias = true, .accumulate = true, .threads = 3});
    }
  }
}

// With x a unit vector the product is a weight: every one of them must come out exactly as it decodes, or with a scale
// that is no power of two between, with float's rounding.
TEST_P(LinearTest, WeightsAreExact) {
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
    SCOPED_TRACE(name_of(levels));
    constexpr int64_t kRows = 20, kCols = 150;
    const TestMatrix matrix({.rows = kRows, .cols = kCols, .levels = levels, .sidecar = 0});
    std::vector<float> unit(kCols * kCols), y(kCols * kRows);
    for (size_t i = 0; i < kCols; ++i) unit[i * kCols + i] = 1;
    for (const int64_t at_once : {int64_t{1}, int64_t{3}, int64_t{8}, kCols}) {
      Scratch scratch(1);
      for (int64_t t = 0; t < kCols; t += at_once) {
        const int64_t tokens = std::min(at_once, kCols - t);
        run_team(1, [&](const Team& team) {
          linear(*matrix.prepared,
                 {.x = unit.data() + t * kCols,
                  .x_stride = kCols,
                  .y = y.data() + t * kRows,
                  .y_stride = kRows,
                  .tokens = tokens},
                 {team, GetParam(), scratch});
        });
      }
      for (int64_t c = 0; c < kCols; ++c) {
        for (int64_t r = 0; r < kRows; ++r) {
          const float weight = matrix.weights[static_cast<size_t>(r * kCols + c)];
          const bool scaled = rounding_of(*matrix.prepared, GetParam(), at_once).kind == Rounding::block;
          ASSERT_NEAR(y[static_cast<size_t>(c * kRows + r)], weight, scaled ? std::fabs(weight) * 0x1p-22 : 0)
              << "row " << r << " col " << c << " tokens " << at_once;
        }
      }
    }
  }
}

// An outlier is the codebook's weight plus a difference: it comes out to within the rounding of both.
TEST_P(LinearTest, OutliersComeOutToWithinTwoRoundings) {
  constexpr int64_t kRows = 20, kCols = 150;
  const TestMatrix matrix({.rows = kRows, .cols = kCols, .levels = Levels::integer, .sidecar = 0.3});
  for (int64_t col = 0; col < kCols; ++col) {
    Product product(kRows, kCols, {.tokens = 1});
    std::ranges::fill(product.x, 0.0f);
    product.x[static_cast<size_t>(col)] = 1;
    product.run(*matrix.prepared, GetParam(), 1);
    for (int64_t row = 0; row < kRows; ++row) {
      const float weight = matrix.weights[static_cast<size_t>(row * kCols + col)];
      const float level =
          matrix.view.codebook[static_cast<size_t>(matrix.view.indices[static_cast<size_t>(row * kCols + col)])];
      EXPECT_NEAR(product.y[static_cast<size_t>(row)], weight,
                  0x1p-24 * (std::fabs(weight - level) + std::fabs(weight)));
    }
  }
}

TEST_P(LinearTest, SameBitsForAnyTeam) {
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
    const TestMatrix matrix({.rows = 83, .cols = 840, .levels = levels, .rank = 2, .channel_scales = true});
    for (const int64_t tokens : {1, 2, 5, 8, 9, 70, 130}) {
      const Call call{.tokens = tokens, .bias = true};
      Product one(83, 840, call);
      one.run(*matrix.prepared, GetParam(), 1);
      for (const int threads : {2, 3, 5}) {
        Product many(83, 840, call);
        many.run(*matrix.prepared, GetParam(), threads);
        EXPECT_EQ(std::memcmp(one.y.data(), many.y.data(), one.y.size() * sizeof(float)), 0)
            << tokens << " tokens, " << threads << " threads";
      }
    }
  }
}

// Up to three tokens are multiplied together: what one of them is like makes no difference to the others.
TEST_P(LinearTest, TokensDoNotDependOnEachOther) {
  constexpr int64_t kRows = 40, kCols = 800;
  for (const Levels levels : {Levels::half, Levels::integer}) {
    const TestMatrix matrix({.rows = kRows, .cols = kCols, .levels = levels});
    Product together(kRows, kCols, {.tokens = 3});
    together.x[kCols + 9] = 1000;     // in the second token far above the others
    together.x[2 * kCols + 9] = NAN;  // in the third no number
    together.run(*matrix.prepared, GetParam(), 1);
    for (int64_t t = 0; t < 3; ++t) {
      Product alone(kRows, kCols, {.tokens = 1});
      std::copy_n(together.x.begin() + t * kCols, kCols, alone.x.begin());
      alone.run(*matrix.prepared, GetParam(), 1);
      EXPECT_EQ(std::memcmp(alone.y.data(), together.y.data() + t * kRows, kRows * sizeof(float)), 0) << "token " << t;
    }
  }
}

// x far out of the range that activations have: the largest and the smallest floats, zeros, and what is not finite.
TEST_P(LinearTest, ExtremeInputs) {
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
    SCOPED_TRACE(name_of(levels));
    const TestMatrix matrix({.rows = 9, .cols = 70, .levels = levels});
    for (const float scale : {1e36f, 1e-28f, 1e-36f, 0.0f})
      for (const int64_t tokens : {1, 2, 3, 20, 130}) {
        if (scale == 1e-36f && tokens == 130) continue;  // may count as 0 there
        Product product(9, 70, {.tokens = tokens});
        for (float& x : product.x) x *= scale;
        product.run(*matrix.prepared, GetParam(), 1);
        product.check(
            9, 70, [&](int64_t r, int64_t c) { return matrix.effective(r, c); },
            rounding_of(*matrix.prepared, GetParam(), tokens));
      }
    for (const float bad : {INFINITY, -INFINITY, NAN}) {
      for (const int64_t tokens : {1, 2, 3, 20, 130}) {
        Product product(9, 70, {.tokens = tokens});
        product.x[5] = bad;
        product.run(*matrix.prepared, GetParam(), 1);
        for (size_t i = 0; i < product.y.size(); ++i) EXPECT_EQ(std::isfinite(product.y[i]), i >= 9);
      }
    }
  }
}

TEST_P(LinearTest, DenseProducts) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    SCOPED_TRACE(hxq::name_of(dtype));
    for (const int64_t rows : kRowCounts) {
      for (const int64_t cols : kColCounts) {
        std::vector<float> weights = normal_floats(rows * cols, 21);
        std::vector<std::byte> bytes(weights.size() * size_of(dtype));
        for (size_t i = 0; i < weights.size(); ++i) {
          if (dtype == DType::f32) {
            std::memcpy(&bytes[i * 4], &weights[i], 4);
            continue;
          }
          const auto bits = dtype == DType::f16 ? f16_from_float(weights[i])
                                                : static_cast<uint16_t>(std::bit_cast<uint32_t>(weights[i]) >> 16);
          std::memcpy(&bytes[i * 2], &bits, 2);
          weights[i] = dtype == DType::f16 ? float_from_f16(bits) : float_from_bf16(bits);
        }
        const GuardedBytes memory(bytes);
        const DenseMatrix matrix{.rows = rows, .cols = cols, .dtype = dtype, .data = memory.bytes().data()};
        const auto weight = [&](int64_t r, int64_t c) {
          return static_cast<double>(weights[static_cast<size_t>(r * cols + c)]);
        };
        for (const int64_t tokens : {1, 3, 8, 9, 33}) {
          const Call call{.tokens = tokens, .x_pad = 1, .y_pad = 2, .bias = rows % 2 == 0, .accumulate = rows % 2 == 1};
          Product product(rows, cols, call);
          product.run(matrix, GetParam(), 1);
          product.check(rows, cols, weight);
          if (HasFatalFailure()) return;
        }
        std::vector<float> gathered(static_cast<size_t>(cols * 2));
        const int32_t ids[] = {static_cast<int32_t>(rows - 1), 0};
        Scratch scratch(1);
        run_team(1, [&](const Team& team) {
          gather_rows(matrix, ids, 2, gathered.data(), {team, GetParam(), scratch});
        });
        for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
          ASSERT_EQ(gathered[c], weights[static_cast<size_t>((rows - 1) * cols) + c]);
          ASSERT_EQ(gathered[static_cast<size_t>(cols) + c], weights[c]);
        }
      }
    }
  }
}

TEST_P(LinearTest, GatheredRowsAreExact) {
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
    for (const int64_t cols : {1, 63, 130, 800}) {
      const TestMatrix matrix({.rows = 40, .cols = cols, .levels = levels});
      const std::vector<int32_t> ids = {39, 0, 7, 7, 38};
      std::vector<float> out(ids.size() * static_cast<size_t>(cols));
      Scratch scratch(2);
      run_team(2, [&](const Team& team) {
        gather_rows(*matrix.prepared, ids.data(), static_cast<int64_t>(ids.size()), out.data(),
                    {team, GetParam(), scratch});
      });
      for (size_t i = 0; i < ids.size(); ++i) {
        EXPECT_EQ(std::memcmp(&out[i * static_cast<size_t>(cols)], &matrix.weights[static_cast<size_t>(ids[i] * cols)],
                              static_cast<size_t>(cols) * sizeof(float)),
                  0);
      }
    }
  }
}

TEST_P(LinearTest, GatheredRowsHaveTheLowRankTerm) {
  const TestMatrix matrix({.rows = 12, .cols = 50, .rank = 3});
  const int32_t id = 11;
  std::vector<float> out(50);
  Scratch scratch(1);
  run_team(1, [&](const Team& team) {
    gather_rows(*matrix.prepared, &id, 1, out.data(), {team, GetParam(), scratch});
  });
  for (int64_t c = 0; c < 50; ++c) EXPECT_NEAR(out[static_cast<size_t>(c)], matrix.effective(11, c), 1e-6);
}

TEST_P(LinearTest, GatheredRowsHaveTheScalesDividedOut) {
  const TestMatrix matrix({.rows = 12, .cols = 50, .rank = 3, .channel_scales = true});
  const int32_t id = 5;
  std::vector<float> out(50);
  Scratch scratch(1);
  run_team(1, [&](const Team& team) {
    gather_rows(*matrix.prepared, &id, 1, out.data(), {team, GetParam(), scratch});
  });
  for (int64_t c = 0; c < 50; ++c) {
    const double expected = matrix.effective(5, c);
    EXPECT_NEAR(out[static_cast<size_t>(c)], expected, 1e-5 * std::max(1.0, std::abs(expected)));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, LinearTest, ::testing::ValuesIn(supported_targets()), target_name);

}  // namespace
}  // namespace hxq::kernels::testing
