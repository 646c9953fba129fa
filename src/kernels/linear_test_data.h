#pragma once

#include <optional>
#include <vector>

#include "kernels/activation_quantization.h"
#include "kernels/kernels_test_data.h"

namespace hxq::kernels::testing {

inline constexpr float kCanary = 12345.0f;

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
inline constexpr Way kWays[] = {{Phase::decode}, {Phase::prefill}, {Phase::prefill, Precision::exact}};

/// How a kernel rounds x before it multiplies; nothing: not at all.
inline std::optional<ActivationQuantization> rounding_of(const TestMatrix& matrix, Target target, Way way) {
  const bool integers = matrix.prepared->planes().integer_levels && matrix.view.layout == IndexLayout::u8;
  if (target == Target::scalar || !integers) return {};
  const bool tiles = target == Target::amx && matrix.view.cols <= kTileQuantization.block;
  if (tiles && (way.phase == Phase::decode || way.precision == Precision::fast)) return kTileQuantization;
  if (way.phase == Phase::prefill && way.precision == Precision::fast) return kPrefillQuantization;
  const bool decodes = target >= Target::avx512 || matrix.prepared->planes().has_segments;
  if (way.phase == Phase::decode && decodes) return kDecodeQuantization;
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

  /// What rounding x, and weights by at most `weight_error`, may change in a row of the product with xt: 8 standard
  /// deviations of as many errors, each uniform, but no more than all of them together.
  template <class WeightAt>
  static double rounding_bound(const ActivationQuantization& rounding, const float* xt, int64_t cols,
                               WeightAt weight_at, double weight_error, int64_t row) {
    double variance = 0, worst = 0;
    for (int64_t begin = 0; begin < cols; begin += rounding.block) {
      double largest = 0;
      const int64_t end = std::min(cols, begin + rounding.block);
      for (int64_t c = begin; c < end; ++c) largest = std::max<double>(largest, std::fabs(xt[c]));
      for (int64_t c = begin; c < end; ++c) {
        const double error =
            std::fabs(weight_at(row, c)) * largest / rounding.largest / 2 + weight_error * std::fabs(xt[c]);
        variance += error * error / 3;
        worst += error;
      }
    }
    return std::min(8 * std::sqrt(variance), worst * 1.001);
  }

  /// Compares with sums in double. A float sum of n products is off by at most n eps sum |w||x|, usually by sqrt(n);
  /// rounding x adds to it, and where that is done rounding weights of row r by weight_error(r).
  template <class WeightAt, class WeightError = double (*)(int64_t)>
  void check(
      int64_t rows, int64_t cols, WeightAt weight_at, std::optional<ActivationQuantization> rounding = {},
      WeightError weight_error = [](int64_t) { return 0.0; }) const {
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
                             (rounding ? rounding_bound(*rounding, xt, cols, weight_at, weight_error(r), r) : 0);
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

}  // namespace hxq::kernels::testing
