#include <fmt/format.h>

#include <optional>

#include "kernels/activation_quantization.h"
#include "kernels/cpu/ops.h"
#include "kernels/kernels_test_data.h"

namespace hxq::kernels::testing {
namespace {

constexpr float kCanary = 12345.0f;

struct Call {
  int64_t tokens = 1;
  Phase phase = Phase::decode;
  Precision precision = Precision::fast;
  int64_t x_pad = 0;  ///< floats between rows of x, and of y
  int64_t y_pad = 0;
  bool bias = false;
  bool accumulate = false;
  int threads = 1;
};

/// The ways to compute a row of x.
struct Way {
  Phase phase;
  Precision precision = Precision::fast;
};
constexpr Way kWays[] = {{Phase::decode}, {Phase::prefill}, {Phase::prefill, Precision::exact}};

/// How a kernel rounds x before it multiplies; nothing: not at all.
std::optional<ActivationQuantization> rounding_of(const TestMatrix& matrix, Target target, Way way) {
  const bool integers = matrix.prepared->planes().integer_levels && matrix.view.layout == IndexLayout::u8;
  if (target != Target::avx512 || !integers) return {};
  if (way.phase == Phase::decode) return kDecodeQuantization;
  if (way.precision == Precision::fast) return kPrefillQuantization;
  return {};
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
            .phase = call.phase,
            .bias = call.bias ? bias.data() : nullptr,
            .accumulate = call.accumulate};
  }

  template <class Matrix>
  void run(const Matrix& matrix, Target target, int threads = 1, Precision precision = Precision::fast) {
    Scratch scratch(threads);
    run_on_cpu(
        threads, target, scratch, [&](const CpuContext& context) { linear(matrix, args, context); }, precision);
  }

  /// What rounding x may change in a row of the product with xt: 8 standard deviations of as many errors, each
  /// uniform, but no more than all of them together.
  template <class WeightAt>
  static double rounding_bound(const ActivationQuantization& rounding, const float* xt, int64_t cols,
                               WeightAt weight_at, int64_t row) {
    double variance = 0, worst = 0;
    for (int64_t begin = 0; begin < cols; begin += rounding.block) {
      double largest = 0;
      const int64_t end = std::min(cols, begin + rounding.block);
      for (int64_t c = begin; c < end; ++c) largest = std::max<double>(largest, std::fabs(xt[c]));
      for (int64_t c = begin; c < end; ++c) {
        const double error = std::fabs(weight_at(row, c)) * largest / rounding.largest / 2;
        variance += error * error / 3;
        worst += error;
      }
    }
    return std::min(8 * std::sqrt(variance), worst * 1.001);
  }

  /// Compares with sums in double. A float sum of n products is off by at most n eps sum |w||x|, usually by sqrt(n);
  /// rounding x adds to it.
  template <class WeightAt>
  void check(int64_t rows, int64_t cols, WeightAt weight_at,
             std::optional<ActivationQuantization> rounding = {}) const {
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
        const double bound = (4 + std::sqrt(cols)) * (size + others) * 0x1p-24 +
                             (rounding ? rounding_bound(*rounding, xt, cols, weight_at, r) : 0);
        ASSERT_NEAR(y[at], sum, std::max(bound, 1e-39)) << "token " << t << " row " << r;
      }
    }
    for (size_t i = 0; i < y.size(); ++i) {
      if (static_cast<int64_t>(i) % args.y_stride >= rows) {
        ASSERT_EQ(y[i], kCanary) << "between rows of y";
      }
    }
  }
};

std::pair<int64_t, int64_t> shape_of(const DenseMatrix& matrix) { return {matrix.rows, matrix.cols}; }
std::pair<int64_t, int64_t> shape_of(const cpu::PreparedCodebook& matrix) { return {matrix.rows(), matrix.cols()}; }

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

  /// y of `whole` computed in calls of `piece` tokens.
  template <class Matrix>
  std::vector<float> in_pieces(const Matrix& matrix, const Product& whole, int64_t piece, int threads,
                               Precision precision) {
    std::vector<float> y = whole.before;
    Scratch scratch(threads);
    for (int64_t t = 0; t < whole.args.tokens; t += piece) {
      LinearArgs args = whole.args;
      args.x += t * args.x_stride;
      args.y = y.data() + t * args.y_stride;
      args.tokens = std::min(piece, whole.args.tokens - t);
      run_on_cpu(
          threads, GetParam(), scratch, [&](const CpuContext& context) { linear(matrix, args, context); }, precision);
    }
    return y;
  }

  /// Rows do not depend on which others are in the call, nor on the team.
  template <class Matrix>
  void expect_same_rows(const Matrix& matrix, const Call& call, std::initializer_list<int64_t> pieces) {
    const auto [rows, cols] = shape_of(matrix);
    Product whole(rows, cols, call);
    if (call.tokens > 7) {  // one far above its neighbours, no number, zeros, the smallest, the largest
      const auto x = [&](int64_t t) { return whole.x.begin() + t * whole.args.x_stride; };
      x(1)[cols / 2] = 1000;
      x(2)[cols - 1] = NAN;
      std::fill_n(x(3), cols, 0.0f);
      for (int64_t c = 0; c < cols; ++c) x(4)[c] *= 1e-36f, x(5)[c] *= 1e36f;
    }
    whole.run(matrix, GetParam(), 1, call.precision);
    const auto expect_same = [&, row_bytes = static_cast<size_t>(rows) * sizeof(float)](int64_t piece, int threads) {
      const std::vector<float> y = in_pieces(matrix, whole, piece, threads, call.precision);
      for (int64_t t = 0; t < call.tokens; ++t) {
        const int64_t at = t * whole.args.y_stride;
        ASSERT_EQ(std::memcmp(y.data() + at, whole.y.data() + at, row_bytes), 0)
            << call.tokens << " tokens in pieces of " << piece << ", " << threads << " threads: token " << t;
      }
    };
    for (const int64_t piece : pieces) expect_same(piece, 1);
    for (const int threads : {2, 7}) expect_same(call.tokens, threads);
  }

  template <class Matrix>
  void expect_same_rows(const Matrix& matrix) {
    for (const int64_t tokens : {2, 3, 8, 9, 33, 64}) {
      SCOPED_TRACE("decode");
      expect_same_rows(
          matrix, {.tokens = tokens, .x_pad = 3, .y_pad = 1, .bias = tokens % 2 == 0, .accumulate = tokens > 8}, {1});
    }
    for (const Precision precision : {Precision::fast, Precision::exact}) {
      SCOPED_TRACE(precision == Precision::fast ? "prefill, fast" : "prefill, exact");
      expect_same_rows(matrix,
                       {.tokens = 521, .phase = Phase::prefill, .precision = precision, .x_pad = 1, .bias = true},
                       {1, 7, 64, 512});
    }
  }
};

constexpr int64_t kRowCounts[] = {1, 3, 4, 5, 14, 15, 29, 70};
constexpr int64_t kColCounts[] = {1, 7, 48, 63, 64, 65, 127, 200, 769};
constexpr int64_t kTokenCounts[] = {1, 2, 3, 4, 5, 8, 9, 16, 33, 130};

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

TEST_P(LinearTest, RowsDependOnNothingButThemselves) {
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
    SCOPED_TRACE(name_of(levels));
    expect_same_rows(*TestMatrix({.rows = 41, .cols = 330, .levels = levels}).prepared);
    expect_same_rows(
        *TestMatrix({.rows = 14, .cols = 64, .levels = levels, .sidecar = 0, .rank = 3, .channel_scales = true})
             .prepared);
    expect_same_rows(*TestMatrix({.rows = 3, .cols = 17, .levels = levels, .sidecar = 1}).prepared);
    if (HasFatalFailure()) return;
  }
  // Decoded in several pieces, for prefill.
  const TestMatrix large({.rows = 59, .cols = 4230, .levels = Levels::integer});
  expect_same_rows(*large.prepared, {.tokens = 35, .phase = Phase::prefill, .accumulate = true}, {1, 7});
}

TEST_P(LinearTest, RowsOfOtherLayoutsDependOnNothingButThemselves) {
  for (const IndexLayout layout : {IndexLayout::u8, IndexLayout::u16, IndexLayout::packed12}) {
    for (const int32_t d : {1, 2}) {
      SCOPED_TRACE(fmt::format("layout {} d {}", static_cast<int>(layout), d));
      expect_same_rows(*TestMatrix({.rows = 10, .cols = 76, .k = 200, .d = d, .layout = layout}).prepared);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(LinearTest, RowsOfDenseProductsDependOnNothingButThemselves) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    SCOPED_TRACE(hxq::name_of(dtype));
    for (const int64_t cols : {7, 48, 200}) {
      std::vector<uint16_t> bits;  // every kind of them is some number
      for (const float value : normal_floats(2 * 13 * cols, 31)) {
        bits.push_back(dtype == DType::f16 ? f16_from_float(value)
                                           : static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
      }
      expect_same_rows(DenseMatrix{
          .rows = 13, .cols = cols, .dtype = dtype, .data = reinterpret_cast<const std::byte*>(bits.data())});
      if (HasFatalFailure()) return;
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
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
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
  for (const Levels levels : {Levels::any, Levels::half, Levels::integer}) {
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
  const TestMatrix matrix({.rows = 12, .cols = 50, .rank = 3});
  const int32_t id = 11;
  std::vector<float> out(50);
  Scratch scratch(1);
  run_on_cpu(1, GetParam(), scratch,
             [&](const CpuContext& context) { gather_rows(*matrix.prepared, &id, 1, out.data(), context); });
  for (int64_t c = 0; c < 50; ++c) EXPECT_NEAR(out[static_cast<size_t>(c)], matrix.effective(11, c), 1e-6);
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
