// Products with grouped matrices against the decoder, in double.

#include <fmt/format.h>

#include "kernels/grouped_test_data.h"

namespace hxq::kernels::testing {
namespace {

class GroupedLinearTest : public ::testing::TestWithParam<Target> {
 protected:
  void expect_product(const TestGrouped& matrix, Call call) {
    const int64_t rows = matrix.view.rows, cols = matrix.view.cols;
    for (const Way way : kWays) {
      SCOPED_TRACE(fmt::format("{} x {} bits {} group {} tokens {} phase {} precision {}", rows, cols,
                               matrix.view.bits(), matrix.view.group, call.tokens, static_cast<int>(way.phase),
                               static_cast<int>(way.precision)));
      call.phase = way.phase;
      Product product(rows, cols, call);
      product.run(*matrix.prepared, GetParam(), call.threads, way.precision);
      const auto rounding = matrix.rounding(GetParam(), way);
      product.check(
          rows, cols, [&](int64_t r, int64_t c) { return matrix.weight(r, c); }, rounding,
          [&](int64_t r) { return matrix.weight_error(r, GetParam(), way); });
    }
  }
};

TEST_P(GroupedLinearTest, ProductsOfAllShapes) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (const int64_t group : {8, 16, 32, 40, 64, 128, 512}) {
      for (const int64_t cols : {1, 7, 15, 64, 65, 130, 263, 600}) {
        const int64_t rows = cols % 2 == 0 ? 29 : 3;
        const TestGrouped matrix({.rows = rows, .cols = cols, .bits = bits, .group = group});
        for (const int64_t tokens : {1, 2, 3, 5, 33}) {
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

// Levels that are evenly spaced bytes, on rows of whole blocks and of a part of one.
TEST_P(GroupedLinearTest, UniformLevels) {
  for (const int64_t group : {8, 16, 32, 40, 64, 256}) {
    for (const int64_t cols : {1, 31, 64, 65, 130, 263, 600, 4230}) {
      const TestGrouped matrix({.rows = 13, .cols = cols, .bits = 8, .group = group, .uniform = true});
      for (const int64_t tokens : {1, 2, 3, 5, 33}) expect_product(matrix, {.tokens = tokens, .threads = 2});
      if (HasFatalFailure()) return;
    }
  }
}

// Matrices that are decoded in several pieces for prefill.
TEST_P(GroupedLinearTest, ProductsOfWideMatrices) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (const int64_t group : {16, 64}) {
      const TestGrouped matrix({.rows = 61, .cols = 4230, .bits = bits, .group = group});
      for (const int64_t tokens : {1, 4, 70}) {
        expect_product(matrix, {.tokens = tokens, .bias = true, .accumulate = true, .threads = 2});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(GroupedLinearTest, AnyLevelsAndScales) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (const int64_t scales : {1, 2, 100}) {
      const TestGrouped matrix({.rows = 21, .cols = 200, .bits = bits, .whole_levels = false, .scales = scales});
      for (const int64_t tokens : {1, 9}) expect_product(matrix, {.tokens = tokens});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(GroupedLinearTest, LowRankTerms) {
  for (const int bits : {3, 6, 8}) {
    for (GroupedOptions options : {GroupedOptions{.rank = 1},
                                   {.rank = 9, .factors = DType::f32},
                                   {.rank = 300, .factors = DType::bf16},
                                   {.uniform = true, .rank = 2}}) {
      options.rows = options.rank == 1 ? 600 : 31, options.cols = 330, options.bits = options.uniform ? 8 : bits;
      const TestGrouped matrix(options);
      for (const int64_t tokens : {1, 2, 5, 33}) {
        expect_product(matrix, {.tokens = tokens, .x_pad = 3, .bias = true, .accumulate = tokens == 5, .threads = 3});
      }
      if (HasFatalFailure()) return;
    }
  }
}

// The largest levels that integers stand for, and larger ones.
TEST_P(GroupedLinearTest, LevelsOfAllSizes) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (const float largest : {1.0f, 300.0f, 32767.0f, 32768.0f}) {
      const TestGrouped matrix({.rows = 17, .cols = 330, .bits = bits, .largest = largest});
      for (const int64_t tokens : {1, 3, 20}) expect_product(matrix, {.tokens = tokens});
      if (HasFatalFailure()) return;
    }
  }
}

// Levels from small to large ones: where small ones alone are in a row, it is as exact as any.
TEST_P(GroupedLinearTest, LevelsThatAreNotWholeAreExact) {
  TestGrouped matrix({.rows = 5, .cols = 96, .bits = 4, .whole_levels = false});
  for (size_t i = 0; i < 8; ++i) matrix.view.levels[i] *= 1e-6f;
  std::vector<std::byte> indices(matrix.view.packed.size());
  for (std::byte& pair : indices) pair = static_cast<std::byte>((&pair - indices.data()) % 8 * 0x11);
  matrix.view.packed = indices;
  matrix.view.decode_rows(0, 5, matrix.weights);
  matrix.prepared = std::make_unique<cpu::PreparedGrouped>(std::make_unique<GroupedMatrix>(matrix.view));
  matrix.prepared->finish();
  for (const int64_t tokens : {1, 2, 20}) expect_product(matrix, {.tokens = tokens});
}

// Rows whose scales are all 0 or far below the others', and no weight that is not 0.
TEST_P(GroupedLinearTest, ScalesOfAllSizes) {
  TestGrouped matrix({.rows = 9, .cols = 96, .bits = 4, .scales = 4});
  for (const std::vector<float>& scales : {std::vector<float>{1e-30f, 1e-20f, 1, 0},
                                           {1e-37f, 1e-38f, 1e-36f, 1e-35f},
                                           {1e33f, 1e30f, 1e-30f, 1},
                                           {0, 0, 0, 0}}) {
    matrix.view.scale_levels = scales;
    matrix.view.decode_rows(0, 9, matrix.weights);
    matrix.prepared = std::make_unique<cpu::PreparedGrouped>(std::make_unique<GroupedMatrix>(matrix.view));
    matrix.prepared->finish();
    for (const int64_t tokens : {1, 2, 20}) expect_product(matrix, {.tokens = tokens});
    if (HasFatalFailure()) return;
  }
}

TEST_P(GroupedLinearTest, ExtremeInputs) {
  const TestGrouped matrix({.rows = 9, .cols = 70});
  for (const Way way : kWays) {
    const auto rounding = matrix.rounding(GetParam(), way);
    for (const int64_t tokens : {1, 2, 20}) {
      for (const float scale : {1e36f, 1e-28f, 1e-36f, 0.0f}) {
        if (scale == 1e-36f && rounding && way.phase == Phase::prefill) continue;  // may count as 0 there
        Product product(9, 70, {.tokens = tokens, .phase = way.phase});
        for (float& x : product.x) x *= scale;
        product.run(*matrix.prepared, GetParam(), 1, way.precision);
        product.check(
            9, 70, [&](int64_t r, int64_t c) { return matrix.weight(r, c); }, rounding,
            [&](int64_t r) { return matrix.weight_error(r, GetParam(), way); });
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

TEST_P(GroupedLinearTest, DecodesAndGathersAsTheDecoder) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (const int64_t cols : {5, 64, 103}) {
      const TestGrouped matrix({.rows = 7, .cols = cols, .bits = bits, .group = 24, .whole_levels = false});
      std::vector<float> decoded(matrix.weights.size()), row(static_cast<size_t>(cols));
      const int32_t id = 5;
      Scratch scratch(2);
      run_on_cpu(2, GetParam(), scratch, [&](const CpuContext& context) {
        matrix.prepared->decode_rows(0, 7, decoded.data(), context);
        matrix.prepared->gather_rows(&id, 1, row.data(), context);
      });
      EXPECT_EQ(decoded, matrix.weights);
      for (size_t c = 0; c < row.size(); ++c) EXPECT_EQ(row[c], matrix.weight(5, static_cast<int64_t>(c)));
    }
  }
}

TEST_P(GroupedLinearTest, GathersRowsWithTheirTerm) {
  for (const DType factors : {DType::f32, DType::f16, DType::bf16}) {
    const TestGrouped matrix({.rows = 7, .cols = 303, .group = 24, .rank = 3, .factors = factors});
    std::vector<float> decoded(matrix.weights.size()), rows(3 * 303);
    const std::vector<int32_t> ids = {5, 0, 5};
    Scratch scratch(2);
    run_on_cpu(2, GetParam(), scratch, [&](const CpuContext& context) {
      matrix.prepared->decode_rows(0, 7, decoded.data(), context);
      matrix.prepared->gather_rows(ids.data(), 3, rows.data(), context);
    });
    EXPECT_EQ(decoded, matrix.weights);
    for (size_t i = 0; i < rows.size(); ++i) {
      const double expected = matrix.weight(ids[i / 303], static_cast<int64_t>(i % 303));
      EXPECT_NEAR(rows[i], expected, 4e-7 * (0.1 + std::fabs(expected)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, GroupedLinearTest, ::testing::ValuesIn(supported_targets()), target_name);

}  // namespace
}  // namespace hxq::kernels::testing
