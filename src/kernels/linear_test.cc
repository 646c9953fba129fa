#include <fmt/format.h>

#include "kernels/linear_test_data.h"

namespace hxq::kernels::testing {
namespace {

class LinearTest : public ::testing::TestWithParam<Target> {
 protected:
  void expect_product(const TestMatrix& matrix, Call call) {
    for (const Way way : kWays) {
      SCOPED_TRACE(fmt::format("{} x {} tokens {} phase {} precision {}", matrix.view.rows, matrix.view.cols,
                               call.tokens, static_cast<int>(way.phase), static_cast<int>(way.precision)));
      call.phase = way.phase;
      Product product(matrix.view.rows, matrix.view.cols, call);
      product.run(*matrix.prepared, GetParam(), call.threads, way.precision);
      product.check(
          matrix.view.rows, matrix.view.cols, [&](int64_t r, int64_t c) { return matrix.effective(r, c); },
          rounding_of(matrix, GetParam(), way));
    }
  }
};

constexpr int64_t kRowCounts[] = {1, 3, 4, 5, 14, 15, 29, 70};
constexpr int64_t kColCounts[] = {1, 7, 48, 63, 64, 65, 127, 200, 769};
constexpr int64_t kTokenCounts[] = {1, 2, 3, 4, 5, 8, 9, 16, 33, 130};

TEST_P(LinearTest, ProductsOfAllShapes) {
  for (const Levels levels : kAllLevels) {
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
  for (const Levels levels : {Levels::integer, Levels::segments}) {
    const TestMatrix matrix({.rows = 131, .cols = 4230, .levels = levels});
    for (const int threads : {1, 2}) {
      expect_product(matrix,
                     {.tokens = 131, .x_pad = 3, .y_pad = 1, .bias = true, .accumulate = true, .threads = threads});
    }
  }
}

// Up to the widest that tiles take, and beyond. x is one sign and far below one value.
TEST_P(LinearTest, ProductsOfWideMatrices) {
  for (const int64_t cols : {kTileQuantization.block, kTileQuantization.block + 64}) {
    const TestMatrix matrix({.rows = 5, .cols = cols, .levels = Levels::integer});
    for (const int64_t tokens : {1, 3, 18}) {
      for (const Way way : kWays) {
        Product product(5, cols, {.tokens = tokens, .phase = way.phase});
        std::ranges::fill(product.x, 1.0f);
        for (int64_t t = 0; t < tokens; ++t) product.x[static_cast<size_t>(t * cols + 7 * t)] = 33025;
        product.run(*matrix.prepared, GetParam(), 2, way.precision);
        product.check(
            5, cols, [&](int64_t r, int64_t c) { return matrix.effective(r, c); },
            rounding_of(matrix, GetParam(), way));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// All bytes of weights and x as large as they get.
TEST_P(LinearTest, LargestIntegersDoNotOverflow) {
  constexpr int64_t kRows = 3, kCols = kTileQuantization.block;
  constexpr float kWeight = -32528, kX = 65 * 0x1p16f - 128 * 0x1p8f - 128;
  const std::vector<std::byte> indices(kRows * kCols);
  CodebookMatrix view;
  view.rows = kRows;
  view.cols = kCols;
  view.k = 2;
  view.indices = indices;
  view.codebook = {kWeight, 16384};
  const cpu::PreparedCodebook matrix(std::make_unique<CodebookMatrix>(view));
  ASSERT_TRUE(matrix.planes().integer_levels);
  matrix.finish();
  for (const int64_t tokens : {1, 2, 17}) {
    for (const Way way : kWays) {
      Product product(kRows, kCols, {.tokens = tokens, .phase = way.phase});
      std::ranges::fill(product.x, kX);
      product.run(matrix, GetParam(), 1, way.precision);
      const double expected = static_cast<double>(kCols) * kWeight * kX;
      for (const float y : product.y) EXPECT_NEAR(y / expected, 1, 1e-4);
    }
  }
}

// What rounding x may cost at most, whatever x is: here one value in 64, or in 256, is far above the others.
TEST_P(LinearTest, SpikesInInputsCostLessThanTheLevelsDo) {
  constexpr int64_t kRows = 64, kCols = 1600, kTokens = 40;
  const TestMatrix matrix({.rows = kRows, .cols = kCols, .levels = Levels::integer, .sidecar = 0});
  double weights = 0;
  for (const float weight : matrix.weights) weights += static_cast<double>(weight) * weight;
  for (const float spike : {1.0f, 30.0f, 300.0f, 3000.0f}) {
    for (const size_t apart : {64, 256}) {
      for (const Phase phase : {Phase::decode, Phase::prefill}) {
        Product product(kRows, kCols, {.tokens = kTokens, .phase = phase});
        for (size_t i = 0; i < product.x.size(); i += apart) product.x[i] *= spike;
        product.run(*matrix.prepared, GetParam());
        double error = 0, inputs = 0;
        for (int64_t t = 0; t < kTokens; ++t) {
          const float* x = product.args.x + t * kCols;
          for (int64_t c = 0; c < kCols; ++c) inputs += static_cast<double>(x[c]) * x[c];
          for (int64_t r = 0; r < kRows; ++r) {
            double sum = 0;
            for (int64_t c = 0; c < kCols; ++c) sum += matrix.effective(r, c) * x[c];
            error += std::pow(sum - product.y[static_cast<size_t>(t * kRows + r)], 2);
          }
        }
        // Of |x|^2 times the mean square of the weights, for every row.
        EXPECT_LT(10 * std::log10(error / (inputs * weights / kCols)), phase == Phase::decode ? -58 : -52)
            << "spike " << spike << " apart " << apart;
      }
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
  for (const Levels levels : kAllLevels) {
    const TestMatrix matrix({.rows = 37, .cols = 130, .levels = levels, .sidecar = 1});
    for (const int64_t tokens : {1, 4, 9, 130}) expect_product(matrix, {.tokens = tokens, .threads = 2});
  }
}

TEST_P(LinearTest, LowRankTermAndChannelScales) {
  for (const int64_t tokens : {1, 3, 9, 40}) {
    for (MatrixOptions options : {MatrixOptions{.rank = 9, .factors = DType::f16},
                                  {.rank = 8, .channel_scales = true},
                                  {.rank = 300, .factors = DType::bf16},
                                  {.rank = 1, .factors = DType::f16}}) {
      options.rows = options.rank == 1 ? 600 : 31, options.cols = 100, options.levels = Levels::half;
      const TestMatrix matrix(options);
      expect_product(matrix,
                     {.tokens = tokens, .x_pad = 4, .y_pad = 1, .bias = true, .accumulate = true, .threads = 3});
    }
  }
}

// With x a unit vector the product is a weight: every one of them must come out exactly as it decodes, or with a scale
// that is no power of two between, with float's rounding.
TEST_P(LinearTest, WeightsAreExact) {
  for (const Levels levels : kAllLevels) {
    SCOPED_TRACE(name_of(levels));
    constexpr int64_t kRows = 20, kCols = 150;
    const TestMatrix matrix({.rows = kRows, .cols = kCols, .levels = levels, .sidecar = 0});
    std::vector<float> unit(kCols * kCols), y(kCols * kRows);
    for (size_t i = 0; i < kCols; ++i) unit[i * kCols + i] = 1;
    for (const Way way : kWays) {
      const int64_t at_once = way.phase == Phase::decode ? 7 : kCols;
      Scratch scratch(1);
      for (int64_t t = 0; t < kCols; t += at_once) {
        const int64_t tokens = std::min(at_once, kCols - t);
        run_on_cpu(
            1, GetParam(), scratch,
            [&](const CpuContext& context) {
              linear(*matrix.prepared,
                     {.x = unit.data() + t * kCols,
                      .x_stride = kCols,
                      .y = y.data() + t * kRows,
                      .y_stride = kRows,
                      .tokens = tokens,
                      .phase = way.phase},
                     context);
            },
            way.precision);
      }
      for (int64_t c = 0; c < kCols; ++c) {
        for (int64_t r = 0; r < kRows; ++r) {
          const float weight = matrix.weights[static_cast<size_t>(r * kCols + c)];
          const bool scaled = rounding_of(matrix, GetParam(), way).has_value();
          ASSERT_NEAR(y[static_cast<size_t>(c * kRows + r)], weight, scaled ? std::fabs(weight) * 0x1p-22 : 0)
              << "row " << r << " col " << c;
        }
      }
    }
  }
}

// An outlier is the codebook's weight plus a difference: it comes out to within the roundings of both and, where x is
// quantized, of its scale.
TEST_P(LinearTest, OutliersComeOutToWithinRoundings) {
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
                  0x1p-24 * (std::fabs(weight - level) + std::fabs(weight) + 4 * std::fabs(level)));
    }
  }
}

// x far out of the range that activations have: the largest and the smallest floats, zeros, and what is not finite.
TEST_P(LinearTest, ExtremeInputs) {
  for (const Levels levels : kAllLevels) {
    SCOPED_TRACE(name_of(levels));
    const TestMatrix matrix({.rows = 9, .cols = 70, .levels = levels});
    for (const Way way : kWays) {
      const auto rounding = rounding_of(matrix, GetParam(), way);
      for (const int64_t tokens : {1, 2, 3, 20, 130}) {
        for (const float scale : {1e36f, 1e-28f, 1e-36f, 0.0f}) {
          if (scale == 1e-36f && rounding && way.phase == Phase::prefill) continue;  // may count as 0 there
          Product product(9, 70, {.tokens = tokens, .phase = way.phase});
          for (float& x : product.x) x *= scale;
          product.run(*matrix.prepared, GetParam(), 1, way.precision);
          product.check(
              9, 70, [&](int64_t r, int64_t c) { return matrix.effective(r, c); }, rounding);
        }
        for (const float bad : {INFINITY, -INFINITY, NAN}) {
          Product product(9, 70, {.tokens = tokens, .phase = way.phase});
          product.x[5] = bad;
          product.run(*matrix.prepared, GetParam(), 1, way.precision);
          for (size_t i = 0; i < product.y.size(); ++i) EXPECT_EQ(std::isfinite(product.y[i]), i >= 9);
        }
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
          for (const Phase phase : {Phase::decode, Phase::prefill}) {
            Product product(rows, cols,
                            {.tokens = tokens,
                             .phase = phase,
                             .x_pad = 1,
                             .y_pad = 2,
                             .bias = rows % 2 == 0,
                             .accumulate = rows % 2 == 1});
            product.run(matrix, GetParam());
            product.check(rows, cols, weight);
            if (HasFatalFailure()) return;
          }
        }
        std::vector<float> gathered(static_cast<size_t>(cols * 2));
        const int32_t ids[] = {static_cast<int32_t>(rows - 1), 0};
        Scratch scratch(1);
        run_on_cpu(1, GetParam(), scratch,
                   [&](const CpuContext& context) { gather_rows(matrix, ids, 2, gathered.data(), context); });
        for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
          ASSERT_EQ(gathered[c], weights[static_cast<size_t>((rows - 1) * cols) + c]);
          ASSERT_EQ(gathered[static_cast<size_t>(cols) + c], weights[c]);
        }
      }
    }
  }
}

TEST_P(LinearTest, GatheredRowsAreExact) {
  for (const Levels levels : kAllLevels) {
    for (const int64_t cols : {1, 63, 130, 800}) {
      const TestMatrix matrix({.rows = 40, .cols = cols, .levels = levels});
      const std::vector<int32_t> ids = {39, 0, 7, 7, 38};
      std::vector<float> out(ids.size() * static_cast<size_t>(cols));
      Scratch scratch(2);
      run_on_cpu(2, GetParam(), scratch, [&](const CpuContext& context) {
        gather_rows(*matrix.prepared, ids.data(), static_cast<int64_t>(ids.size()), out.data(), context);
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
  for (const DType factors : {DType::f32, DType::f16, DType::bf16}) {
    const TestMatrix matrix({.rows = 12, .cols = 303, .rank = 3, .factors = factors});
    const int32_t id = 11;
    std::vector<float> out(303);
    Scratch scratch(1);
    run_on_cpu(1, GetParam(), scratch,
               [&](const CpuContext& context) { gather_rows(*matrix.prepared, &id, 1, out.data(), context); });
    for (int64_t c = 0; c < 303; ++c) EXPECT_NEAR(out[static_cast<size_t>(c)], matrix.effective(11, c), 1e-6);
  }
}

TEST_P(LinearTest, GatheredRowsHaveTheScalesDividedOut) {
  const TestMatrix matrix({.rows = 12, .cols = 50, .rank = 3, .channel_scales = true});
  const int32_t id = 5;
  std::vector<float> out(50);
  Scratch scratch(1);
  run_on_cpu(1, GetParam(), scratch,
             [&](const CpuContext& context) { gather_rows(*matrix.prepared, &id, 1, out.data(), context); });
  for (int64_t c = 0; c < 50; ++c) {
    const double expected = matrix.effective(5, c);
    EXPECT_NEAR(out[static_cast<size_t>(c)], expected, 1e-5 * std::max(1.0, std::abs(expected)));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, LinearTest, ::testing::ValuesIn(supported_targets()), target_name);

}  // namespace
}  // namespace hxq::kernels::testing
