// A row of a product is the same to the last bit whatever else is in the call, and whatever the team.

#include <fmt/format.h>

#include "kernels/grouped_test_data.h"

namespace hxq::kernels::testing {
namespace {

std::pair<int64_t, int64_t> shape_of(const DenseMatrix& matrix) { return {matrix.rows, matrix.cols}; }
std::pair<int64_t, int64_t> shape_of(const cpu::PreparedCodebook& matrix) { return {matrix.rows(), matrix.cols()}; }
std::pair<int64_t, int64_t> shape_of(const cpu::PreparedGrouped& matrix) { return {matrix.rows(), matrix.cols()}; }

class LinearRowsTest : public ::testing::TestWithParam<Target> {
 protected:
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
    if (call.tokens > 7) {  // one far above its neighbours, no number, zeros, small, large, below the smallest normal
      const auto x = [&](int64_t t) { return whole.x.begin() + t * whole.args.x_stride; };
      x(1)[cols / 2] = 1000;
      x(2)[cols - 1] = NAN;
      std::fill_n(x(3), cols, 0.0f);
      for (int64_t c = 0; c < cols; ++c) x(4)[c] *= 1e-36f, x(5)[c] *= 1e36f, x(6)[c] *= 1e-42f;
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
          matrix, {.tokens = tokens, .x_pad = 3, .y_pad = 1, .bias = tokens % 2 == 0, .accumulate = tokens > 9}, {1});
    }
    for (const Precision precision : {Precision::fast, Precision::exact}) {
      SCOPED_TRACE(precision == Precision::fast ? "prefill, fast" : "prefill, exact");
      expect_same_rows(matrix,
                       {.tokens = 521, .phase = Phase::prefill, .precision = precision, .x_pad = 1, .bias = true},
                       {1, 7, 64, 512});
    }
  }
};

TEST_P(LinearRowsTest, DependOnNothingButThemselves) {
  for (const Levels levels : kAllLevels) {
    SCOPED_TRACE(name_of(levels));
    expect_same_rows(*TestMatrix({.rows = 41, .cols = 330, .levels = levels}).prepared);
    expect_same_rows(
        *TestMatrix({.rows = 14, .cols = 64, .levels = levels, .sidecar = 0, .rank = 3, .channel_scales = true})
             .prepared);
    expect_same_rows(*TestMatrix({.rows = 39, .cols = 64, .levels = levels, .rank = 1}).prepared);
    expect_same_rows(*TestMatrix({.rows = 3, .cols = 17, .levels = levels, .sidecar = 1}).prepared);
    if (HasFatalFailure()) return;
  }
  // Decoded in several pieces, for prefill.
  const TestMatrix large({.rows = 59, .cols = 4230, .levels = Levels::integer});
  expect_same_rows(*large.prepared, {.tokens = 35, .phase = Phase::prefill, .accumulate = true}, {1, 7});
  // The pieces of one thread hold fewer outliers each than those of two, which begin elsewhere.
  const TestMatrix uneven({.rows = 140, .cols = 330, .levels = Levels::integer, .sidecar = 1, .sidecar_row = 84});
  expect_same_rows(*uneven.prepared, {.tokens = 35, .phase = Phase::prefill}, {7});
}

TEST_P(LinearRowsTest, OtherLayoutsDependOnNothingButThemselves) {
  for (const IndexLayout layout : {IndexLayout::u8, IndexLayout::u16, IndexLayout::packed12}) {
    for (const int32_t d : {1, 2}) {
      SCOPED_TRACE(fmt::format("layout {} d {}", static_cast<int>(layout), d));
      expect_same_rows(*TestMatrix({.rows = 10, .cols = 76, .k = 200, .d = d, .layout = layout}).prepared);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(LinearRowsTest, GroupedProductsDependOnNothingButThemselves) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (const int64_t group : {16, 24, 32, 64, 256}) {
      SCOPED_TRACE(fmt::format("bits {} group {}", bits, group));
      expect_same_rows(*TestGrouped({.rows = 39, .cols = 330, .bits = bits, .group = group}).prepared);
      if (HasFatalFailure()) return;
    }
  }
  expect_same_rows(*TestGrouped({.rows = 39, .cols = 330, .bits = 8, .uniform = true}).prepared);
  for (const int bits : {4, 8})
    expect_same_rows(*TestGrouped({.rows = 39, .cols = 130, .bits = bits, .rank = 2}).prepared);
}

TEST_P(LinearRowsTest, DenseProductsDependOnNothingButThemselves) {
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

INSTANTIATE_TEST_SUITE_P(Targets, LinearRowsTest, ::testing::ValuesIn(supported_targets()), target_name);

}  // namespace
}  // namespace hxq::kernels::testing
