// Products on the GPU against sums in double over the decoded matrix: shapes that fill nothing evenly, every type of
// activations, rows apart from each other, outliers, scales and low-rank terms.

#include "kernels/cuda/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/sequence.h"
#include "kernels/cuda/test_device.h"

namespace hxq::cuda {
namespace {

using namespace testing;

/// Of the sum of |w x|: sums in float over a few thousand terms.
constexpr double kExact = 2e-6;
/// x and weights have 11 bits.
constexpr double kFast = 0x1p-10;

/// Whether this GPU has kernels that multiply several matrices together.
bool on_hopper() {
  const TestMatrix matrix = make_matrix({.rows = 1, .cols = 16});
  const DeviceMatrix device(matrix);
  return supports_codebook_gemm(device.weight());
}

void expect_product(const TestMatrix& matrix, const Call& call, const std::string& what, double bound) {
  const DeviceMatrix device(matrix);
  expect_linear(device.weight(), matrix.decoded, call, what, bound);
}

void expect_product(const TestMatrix& matrix, const Call& call, const std::string& what) {
  expect_product(matrix, call, what, call.precision == Precision::exact ? kExact : kFast);
}

TEST(CudaLinear, MultipliesOneToken) {
  HXQ_NEEDS_GPU();
  // The last shape: blocks that finish their rows in several rounds, on a GPU of 132 multiprocessors.
  const std::pair<int64_t, int64_t> shapes[] = {{1, 16},     {80, 1536},  {1536, 48},  {33, 50},     {3072, 768},
                                                {300, 1000}, {257, 4096}, {7, 8192},   {130, 11008}, {5, 24576},
                                                {2, 28672},  {512, 17},   {700, 5632}, {9000, 80},   {10700, 8192}};
  for (const auto& [rows, cols] : shapes) {
    const TestMatrix matrix = make_matrix({.rows = rows, .cols = cols, .outliers = 0.003});
    expect_product(matrix, {}, to_string(Shape{rows, cols}));
    expect_product(matrix, {.x = DType::bf16, .y = DType::bf16, .gap = 3, .bias = true},
                   to_string(Shape{rows, cols}) + " bf16");
  }
}

TEST(CudaLinear, MultipliesAnyNumberOfTokens) {
  HXQ_NEEDS_GPU();
  const std::pair<int64_t, int64_t> shapes[] = {{1, 16}, {80, 1536}, {1536, 48}, {33, 50}, {700, 768}, {513, 4096}};
  for (const auto& [rows, cols] : shapes) {
    const TestMatrix matrix = make_matrix({.rows = rows, .cols = cols, .outliers = 0.003});
    for (const int64_t tokens : {2, 3, 8, 9, 16, 17, 31, 33, 64, 65, 128, 129, 200}) {
      const std::string what = to_string(Shape{tokens, rows, cols});
      expect_product(matrix, {.tokens = tokens}, what);
      expect_product(matrix,
                     {.tokens = tokens, .x = DType::bf16, .y = DType::f16, .gap = 5, .bias = true, .accumulate = true},
                     what + " bf16");
      expect_product(matrix, {.tokens = tokens, .precision = Precision::fast}, what + " fast");
      // Rows of x that are aligned, and not: kernels for few tokens differ.
      for (const int64_t gap : {8, 1}) {
        expect_product(
            matrix, {.tokens = tokens, .x = DType::f16, .y = DType::bf16, .gap = gap, .bias = true, .accumulate = true},
            what + " f16, gap " + std::to_string(gap));
        expect_product(matrix, {.tokens = tokens, .gap = gap}, what + " gap " + std::to_string(gap));
      }
    }
  }
}

TEST(CudaLinear, ClustersGoOnToFurtherPasses) {
  HXQ_NEEDS_GPU();
  const TestMatrix matrix = make_matrix({.rows = 17000, .cols = 592, .outliers = 0.003});
  expect_product(matrix, {.tokens = 8, .precision = Precision::fast}, "f32");
  expect_product(matrix, {.tokens = 7, .x = DType::bf16, .precision = Precision::fast}, "bf16");
}

TEST(CudaLinear, GoesOnToFurtherTiles) {
  HXQ_NEEDS_GPU();
  // More tiles than a GPU has multiprocessors, for tokens of every width of a tile; rows aligned and not.
  for (const auto& [cols, tokens] : {std::pair<int64_t, std::vector<int64_t>>{17, {2, 9, 17, 33, 65}},
                                     {64, {2, 9, 17, 33, 65}},
                                     {208, {2, 9}},
                                     {512, {17}}}) {
    const TestMatrix matrix = make_matrix({.rows = 34000, .cols = cols, .outliers = 0.003});
    const TestMatrix float_levels = make_matrix({.rows = 34000, .cols = cols, .outliers = 0.003, .half_levels = false});
    for (const int64_t count : tokens) {
      const std::string what = to_string(Shape{count, 34000, cols});
      expect_product(matrix, {.tokens = count}, what);
      expect_product(matrix, {.tokens = count, .precision = Precision::fast}, what + " fast");
      if (cols == 64) expect_product(float_levels, {.tokens = count}, what + " float levels");
    }
  }
}

TEST(CudaLinear, KeepsTokensApart) {
  HXQ_NEEDS_GPU();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const TestMatrix matrix = make_matrix({.rows = 300, .cols = 320, .outliers = 0.01});
  const DeviceMatrix device(matrix);
  for (const int64_t tokens : {8, 9, 40, 100}) {
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      std::vector<float> x = Random(8).normals(static_cast<size_t>(tokens * 320));
      std::vector<std::vector<float>> y;
      for (const bool spoilt : {false, true}) {
        if (spoilt) {
          std::fill_n(x.begin() + 2 * 320, 320, std::nanf(""));
          x[5 * 320 + 7] = kInfinity;
        }
        const DeviceRows device_x(x, tokens, 320, 0, DType::f32), device_y(tokens, 300, 0, DType::f32);
        const DeviceArray<std::byte> workspace(linear_workspace(device.weight(), tokens));
        HXQ_EXPECT_OK(linear(device.weight(),
                             {.x = device_x.input(),
                              .y = device_y.output(),
                              .tokens = tokens,
                              .precision = precision,
                              .workspace = {.data = workspace.data(), .bytes = workspace.size()}},
                             nullptr));
        expect_finished();
        y.push_back(device_y.values());
      }
      for (size_t i = 0; i < y[0].size(); ++i) {
        const size_t token = i / 300;
        ASSERT_TRUE(token == 2 || token == 5 || y[0][i] == y[1][i]) << tokens << " tokens, value " << i;
      }
    }
  }
}

TEST(CudaLinear, TakesEveryTypeOfActivations) {
  HXQ_NEEDS_GPU();
  const TestMatrix matrix = make_matrix({.rows = 100, .cols = 320, .outliers = 0.01});
  for (const DType x : {DType::f32, DType::bf16, DType::f16}) {
    for (const DType y : {DType::f32, DType::bf16, DType::f16}) {
      for (const int64_t tokens : {1, 5}) {
        expect_product(matrix, {.tokens = tokens, .x = x, .y = y, .gap = 1, .accumulate = true},
                       std::string(name_of(x)) + " " + std::string(name_of(y)));
      }
    }
  }
}

void expect_many_tokens(double outliers) {
  const std::pair<int64_t, int64_t> shapes[] = {{1, 16}, {130, 1040}, {700, 768}, {257, 4096}};
  for (const auto& [rows, cols] : shapes) {
    const TestMatrix matrix = make_matrix({.rows = rows, .cols = cols, .outliers = outliers});
    for (const int64_t tokens : {40, 64, 100, 250, 300}) {
      const std::string what = to_string(Shape{tokens, rows, cols});
      expect_product(matrix, {.tokens = tokens, .x = DType::bf16, .y = DType::bf16, .gap = 8, .bias = true}, what);
      expect_product(matrix, {.tokens = tokens, .x = DType::bf16, .gap = 1, .accumulate = true}, what);
      expect_product(matrix, {.tokens = tokens, .y = DType::f16, .precision = Precision::fast}, what + " fast");
    }
  }
}

TEST(CudaLinear, MultipliesManyTokens) {
  HXQ_NEEDS_GPU();
  expect_many_tokens(0);
}

TEST(CudaLinear, MultipliesManyTokensWithOutliers) {
  HXQ_NEEDS_GPU();
  expect_many_tokens(0.003);
}

TEST(CudaLinear, MultipliesLargerMatricesWithManyTokens) {
  HXQ_NEEDS_GPU();
  // As many weights as the product for few tokens leaves to tiles of 64 tokens; splits that add up in either way.
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{2100, 2064}, {8200, 528}}) {
    const TestMatrix matrix = make_matrix({.rows = rows, .cols = cols, .outliers = 0.003});
    for (const int64_t tokens : {37, 64}) {
      const std::string what = to_string(Shape{tokens, rows, cols});
      expect_product(matrix, {.tokens = tokens, .x = DType::bf16, .y = DType::bf16, .bias = true}, what);
      expect_product(matrix, {.tokens = tokens, .bias = true, .precision = Precision::fast}, what + " fast");
    }
  }
}

TEST(CudaLinear, TakesTilesOfManyTokensInTurn) {
  HXQ_NEEDS_GPU();
  const TestMatrix matrix = make_matrix({.rows = 34000, .cols = 80, .outliers = 0.01});
  for (const int64_t tokens : {50, 120, 200}) {
    const std::string what = to_string(Shape{tokens, 34000, 80});
    expect_product(matrix, {.tokens = tokens, .x = DType::bf16}, what);
    expect_product(matrix, {.tokens = tokens, .bias = true, .precision = Precision::fast}, what + " fast");
  }
}

TEST(CudaLinear, PlacesMoreOutliersThanABlockKeepsReady) {
  HXQ_NEEDS_GPU();
  const TestMatrix matrix = make_matrix({.rows = 130, .cols = 4112, .outliers = 0.03});
  expect_product(matrix, {.tokens = 250, .precision = Precision::fast}, "many outliers");
}

TEST(CudaLinear, AppliesScalesAndLowRankTerms) {
  HXQ_NEEDS_GPU();
  for (const int64_t tokens : {1, 4, 40}) {
    const TestMatrix all = make_matrix({.rows = 90, .cols = 208, .outliers = 0.01, .rank = 8, .scales = true});
    expect_product(all, {.tokens = tokens, .bias = true}, "all");
    expect_product(all, {.tokens = tokens, .bias = true, .precision = Precision::fast}, "all, fast");
    expect_product(make_matrix({.rows = 300, .cols = 208, .outliers = 0.01, .rank = 3}),
                   {.tokens = tokens, .x = DType::bf16, .gap = 1}, "low rank");
    expect_product(make_matrix({.rows = 90, .cols = 208, .rank = 3}), {.tokens = tokens}, "low rank");
    for (const DType x : {DType::bf16, DType::f16}) expect_product(all, {.tokens = tokens, .x = x}, "all, 16 bits");
    expect_product(make_matrix({.rows = 90, .cols = 208, .outliers = 0.3, .scales = true}), {.tokens = tokens},
                   "many outliers");
  }
}

/// What a fused product multiplies with, in double, and as what it is read.
struct FusedX {
  std::vector<double> x = {};
  std::vector<float> read, weight;
};

FusedX make_fused_x(int64_t cols, DType dtype, bool normed) {
  Random random(17);
  FusedX made{.read = random.normals(static_cast<size_t>(cols), dtype),
              .weight = random.normals(static_cast<size_t>(cols))};
  double squares = 0;
  for (const float x : made.read) squares += static_cast<double>(x) * x;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
  for (size_t c = 0; c < made.read.size(); ++c) {
    const double x = made.read[c];
    made.x.push_back(normed ? x * scale * made.weight[c] : x);
  }
  return made;
}

TEST(CudaLinear, FusesProductsAndWhatMakesTheirX) {
  HXQ_NEEDS_GPU();
  for (const int64_t cols : {48, 768, 2048, 11008}) {
    const TestMatrix matrices[] = {make_matrix({.rows = 700, .cols = cols, .outliers = 0.003}),
                                   make_matrix({.rows = 1, .cols = cols}),
                                   make_matrix({.rows = 130, .cols = cols, .outliers = 0.01, .rank = 2})};
    const DeviceMatrix on_device[] = {DeviceMatrix(matrices[0]), DeviceMatrix(matrices[1]), DeviceMatrix(matrices[2])};
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const bool normed : {false, true}) {
        const FusedX made = make_fused_x(cols, dtype, normed);
        const DeviceRows x(made.read, 1, cols, 0, dtype);
        const DeviceArray<float> norm_weight(made.weight);
        FusedInput input{.x = x.input()};
        if (normed) input.norm_weight = norm_weight.data(), input.eps = 1e-5f;
        std::vector<DeviceRows> y;
        std::vector<FusedProduct> products;
        const std::vector<float> bias = Random(3).normals(700);
        const DeviceArray<float> device_bias(bias);
        for (size_t i = 0; i < 3; ++i) {
          y.emplace_back(1, matrices[i].rows, 0, DType::f32);
          if (i == 2) y[i].set(std::vector<float>(130, 0.5f));
          ASSERT_TRUE(supports_fused_linear(input, on_device[i].weight()));
          products.push_back({.weight = on_device[i].weight(),
                              .y = y[i].output(),
                              .bias = i == 0 ? device_bias.data() : nullptr,
                              .accumulate = i == 2});
        }
        HXQ_EXPECT_OK(fused_linear(input, products.data(), 3, nullptr));
        expect_finished();
        for (size_t i = 0; i < 3; ++i) {
          const Product expected = multiply_rows(matrices[i].decoded, matrices[i].rows, cols, made.x, 1,
                                                 i == 0 ? bias : std::vector<float>{},
                                                 i == 2 ? std::vector<float>(130, 0.5f) : std::vector<float>{});
          expect_close(y[i].values(), expected.y, expected.size, kExact, DType::f32,
                       std::to_string(cols) + (normed ? " columns, normed" : " columns"));
        }
      }
    }
  }
}

enum class MadeBy { nothing, norm, activation };

/// What the products read: `read`, its norm with the weights `with`, or `read` as a gate of `with`.
std::vector<float> x_of(MadeBy made_by, const std::vector<float>& read, const std::vector<float>& with, int64_t cols) {
  if (made_by == MadeBy::nothing) return read;
  std::vector<float> x(read.size());
  for (size_t begin = 0; begin < x.size(); begin += static_cast<size_t>(cols)) {
    double squares = 0;
    for (size_t i = begin; i < begin + static_cast<size_t>(cols); ++i)
      squares += static_cast<double>(read[i]) * read[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
    for (size_t i = begin; i < begin + static_cast<size_t>(cols); ++i) {
      const double value = read[i];
      x[i] = static_cast<float>(made_by == MadeBy::norm ? value * scale * with[i - begin]
                                                        : value / (1 + std::exp(-value)) * with[i]);
    }
  }
  return x;
}

/// x that a norm or an activation makes is checked through the products alone.
TEST(CudaLinear, MultipliesSeveralMatricesWithTheSameX) {
  HXQ_NEEDS_GPU();
  struct Case {
    int64_t cols;
    int64_t rows = 700;  ///< of the first
    bool together = true;
    int32_t rank = 0;  ///< of the third
    double outliers = 0.003;
    bool half_levels = true;
    DType x = DType::f32;
  };
  const Case cases[] = {{48},
                        {64, 34000},
                        {1040},
                        {.cols = 768, .outliers = 0},
                        {.cols = 768, .x = DType::bf16},
                        {.cols = 768, .together = false, .rank = 2},
                        {.cols = 768, .together = false, .half_levels = false},
                        {.cols = 77, .together = false}};
  for (const Case& one : cases) {
    const TestMatrix matrices[] = {
        make_matrix({.rows = one.rows, .cols = one.cols, .outliers = one.outliers, .half_levels = one.half_levels}),
        make_matrix({.rows = 1, .cols = one.cols}),
        make_matrix({.rows = 130, .cols = one.cols, .outliers = 3 * one.outliers, .rank = one.rank})};
    const DeviceMatrix on_device[] = {DeviceMatrix(matrices[0]), DeviceMatrix(matrices[1]), DeviceMatrix(matrices[2])};
    bool together = true;
    for (const DeviceMatrix& matrix : on_device) together &= supports_joint_gemm(matrix.weight(), Precision::exact);
    EXPECT_EQ(together, one.together && on_hopper());
    for (const auto& [tokens, gap] :
         {std::pair<int64_t, int64_t>{1, 3}, {2, 3}, {2, 8}, {9, 3}, {9, 8}, {40, 3}, {40, 8}, {100, 3}}) {
      for (const auto& [precision, made_by] : {std::pair{Precision::exact, MadeBy::nothing},
                                               {Precision::exact, MadeBy::norm},
                                               {Precision::exact, MadeBy::activation},
                                               {Precision::fast, MadeBy::nothing},
                                               {Precision::fast, MadeBy::norm},
                                               {Precision::fast, MadeBy::activation}}) {
        if (one.rows > 1000 && tokens != 9) continue;
        if (made_by != MadeBy::nothing && one.x != DType::f32) continue;  // it is rounded between the two
        const std::vector<float> read = Random(7).normals(static_cast<size_t>(tokens * one.cols), one.x),
                                 up = Random(4).normals(static_cast<size_t>(tokens * one.cols)),
                                 norm_weight = Random(2).normals(static_cast<size_t>(one.cols));
        const std::vector<float> x = x_of(made_by, read, made_by == MadeBy::norm ? norm_weight : up, one.cols);
        const std::vector<float> bias = Random(3).normals(static_cast<size_t>(one.rows));
        const std::vector<float> start(static_cast<size_t>(tokens * 130), 0.5f);
        const DeviceRows device_read(read, tokens, one.cols, gap, one.x),
            device_up(up, tokens, one.cols, gap, DType::f32),
            device_x(std::vector<float>(x.size()), tokens, one.cols, gap, one.x);
        const DeviceArray<float> device_bias(bias), device_weight(norm_weight);
        const RmsNormArgs norm{.x = device_read.input(),
                               .weight = device_weight.data(),
                               .y = device_x.output(),
                               .tokens = tokens,
                               .dim = one.cols,
                               .eps = 1e-5f};
        const GatedActivationArgs activation{.gate = device_read.input(),
                                             .up = device_up.input(),
                                             .y = device_read.output(),
                                             .tokens = tokens,
                                             .dim = one.cols};
        std::vector<DeviceRows> y;
        std::vector<FusedProduct> products;
        size_t bytes = 0;
        for (size_t i = 0; i < 3; ++i) {
          y.emplace_back(tokens, matrices[i].rows, 1, DType::f32);
          if (i == 2) y[i].set(start);
          bytes = std::max(bytes, linear_workspace(on_device[i].weight(), tokens));
          products.push_back({.weight = on_device[i].weight(),
                              .y = y[i].output(),
                              .bias = i == 0 ? device_bias.data() : nullptr,
                              .accumulate = i == 2});
        }
        const DeviceArray<std::byte> workspace(bytes);
        const auto multiply_with = [&, count = tokens, in = precision, by = made_by](size_t workspace_bytes) {
          return joint_linear({.x = by == MadeBy::norm ? device_x.input() : device_read.input(),
                               .tokens = count,
                               .precision = in,
                               .workspace = {.data = workspace.data(), .bytes = workspace_bytes}},
                              {.norm = by == MadeBy::norm ? &norm : nullptr,
                               .activation = by == MadeBy::activation ? &activation : nullptr},
                              products.data(), 3, nullptr);
        };
        HXQ_EXPECT_OK(multiply_with(bytes));
        expect_finished();
        for (size_t i = 0; i < 3; ++i) {
          const Product expected = multiply(matrices[i], x, tokens, i == 0 ? bias : std::vector<float>{},
                                            i == 2 ? start : std::vector<float>{});
          expect_close(y[i].values(), expected.y, expected.size, precision == Precision::exact ? kExact : kFast,
                       DType::f32,
                       std::to_string(tokens) + " tokens, gap " + std::to_string(gap) + ", matrix " +
                           std::to_string(i) + ", made by " + std::to_string(static_cast<int>(made_by)));
        }
        EXPECT_TRUE(bytes == 0 || multiply_with(bytes - 1) == Status::invalid_value);
      }
    }
  }
}

TEST(CudaLinear, KeepsLevelsThatNeedMoreBits) {
  HXQ_NEEDS_GPU();
  for (const int64_t tokens : {1, 2, 12, 30, 60, 100}) {
    expect_product(make_matrix({.rows = 130, .cols = 512, .k = 200, .half_levels = false}), {.tokens = tokens},
                   "float levels");
    expect_product(make_matrix({.rows = 130, .cols = 512, .k = 200, .half_levels = false}),
                   {.tokens = tokens, .precision = Precision::fast}, "fast");
  }
}

TEST(CudaLinear, TakesOutliersThatNoTileHolds) {
  HXQ_NEEDS_GPU();
  for (const int64_t tokens : {1, 3, 70}) {
    expect_product(make_matrix({.rows = 37, .cols = 64, .outliers = 0.01, .fits_tiles = false}), {.tokens = tokens},
                   "outliers");
  }
}

TEST(CudaLinear, TakesEveryLayoutOfIndices) {
  HXQ_NEEDS_GPU();
  for (const int64_t tokens : {1, 3, 9}) {
    expect_product(make_matrix({.rows = 37, .cols = 48, .k = 700, .index_bits = 16, .outliers = 0.01}),
                   {.tokens = tokens}, "16 bits");
    expect_product(make_matrix({.rows = 38, .cols = 48, .k = 4096, .d = 2, .index_bits = 12, .outliers = 0.01}),
                   {.tokens = tokens}, "12 bits, pairs");
    expect_product(make_matrix({.rows = 37, .cols = 48, .k = 256, .d = 4, .index_bits = 8}), {.tokens = tokens},
                   "quadruples");
    expect_product(make_matrix({.rows = 3, .cols = 40000, .k = 256}), {.tokens = 1}, "very many columns");
  }
}

TEST(CudaLinear, TakesIndicesAtAnyAddress) {
  HXQ_NEEDS_GPU();
  for (const int offset : {1, 2, 3, 7, 8}) {
    const TestMatrix matrix = make_matrix({.rows = 33, .cols = 96, .outliers = 0.01, .index_offset = offset});
    expect_product(matrix, {}, "one token");
    expect_product(matrix, {.tokens = 6}, "six tokens");
  }
}

TEST(CudaLinear, KeepsValuesFarApart) {
  HXQ_NEEDS_GPU();
  // x beyond the range of binary16, and tokens of very different size.
  const TestMatrix matrix = make_matrix({.rows = 64, .cols = 256});
  const std::vector<float> sizes = {1e30f, 1e-30f, 7e4f, 0.0f, 1.0f};
  Random random(5);
  std::vector<float> x;
  for (const float size : sizes) {
    const std::vector<float> row = random.normals(256, DType::f32, size);
    x.insert(x.end(), row.begin(), row.end());
  }
  const DeviceRows device_x(x, 5, 256, 0, DType::f32);
  const DeviceRows device_y(5, 64, 0, DType::f32);
  const DeviceMatrix device(matrix);
  const DeviceArray<std::byte> workspace(linear_workspace(device.weight(), 5));
  HXQ_EXPECT_OK(linear(device.weight(),
                       {.x = device_x.input(),
                        .y = device_y.output(),
                        .tokens = 5,
                        .workspace = {.data = workspace.data(), .bytes = workspace.size()}},
                       nullptr));
  expect_finished();
  const Product expected = multiply(matrix, x, 5, {}, {});
  expect_close(device_y.values(), expected.y, expected.size, kExact, DType::f32, "sizes");
}

TEST(CudaLinear, MultipliesDenseMatrices) {
  HXQ_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {80, 48}, {33, 129}, {300, 1536}}) {
      for (const int64_t tokens : {1, 7, 8, 19, 600}) {
        Random random(3);
        const std::vector<float> w = random.normals(static_cast<size_t>(rows * cols), dtype);
        const std::vector<float> x = random.normals(static_cast<size_t>(tokens * cols));
        const DeviceRows device_w(w, rows, cols, 0, dtype), device_x(x, tokens, cols, 2, DType::f32);
        const DeviceRows device_y(tokens, rows, 1, DType::f32);
        HXQ_EXPECT_OK(linear(DenseWeight{.rows = rows, .cols = cols, .dtype = dtype, .data = device_w.input().data},
                             {.x = device_x.input(), .y = device_y.output(), .tokens = tokens}, nullptr));
        expect_finished();
        const Product expected = multiply_dense(w, rows, cols, x, tokens);
        expect_close(device_y.values(), expected.y, expected.size, kExact, DType::f32,
                     to_string(Shape{tokens, rows, cols}));
      }
    }
  }
}

}  // namespace
}  // namespace hxq::cuda
