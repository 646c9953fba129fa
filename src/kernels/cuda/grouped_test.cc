// Grouped matrices on the GPU against sums in double over what the scalar decoder gives: every number of bits, groups
// of any size, rows that are not aligned, any type of activations.

#include "kernels/cuda/grouped.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/grouped_gemv.cuh"
#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/test_device.h"
#include "kernels/cuda_device/grouped_weight.h"
#include "kernels/grouped_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;
using kernels::testing::GroupedOptions;
using kernels::testing::TestGrouped;

/// Of the sum of |w x|: sums in float over a few thousand terms.
constexpr double kExact = 2e-6;
/// x and weights are rounded to BF16.
constexpr double kFast = 0x1p-7;

/// The matrix on the device. `offset`: bytes from an aligned address to its indices, and to its scales.
class DeviceGrouped {
 public:
  explicit DeviceGrouped(const TestGrouped& m, int offset = 0)
      : indices_(shifted(m.view.packed, offset)), scales_(shifted(m.view.scales, offset)) {
    weight_.indices = indices_.data() + offset;
    weight_.scales = scales_.data() + offset;
    kernels::describe(m.view, weight_, [&](const float*& field, std::span<const float> values) {
      if (values.empty()) return;
      arrays_.emplace_back(std::vector<float>(values.begin(), values.end()));
      field = arrays_.back().data();
    });
  }
  const GroupedWeight& weight() const { return weight_; }

 private:
  static std::vector<uint8_t> shifted(std::span<const std::byte> bytes, int offset) {
    std::vector<uint8_t> all(static_cast<size_t>(offset), 0);
    for (const std::byte byte : bytes) all.push_back(static_cast<uint8_t>(byte));
    return all;
  }

  GroupedWeight weight_;
  DeviceArray<uint8_t> indices_, scales_;
  std::vector<DeviceArray<float>> arrays_;
};

std::string text_of(const GroupedOptions& o, const Call& call) {
  return std::to_string(o.rows) + "x" + std::to_string(o.cols) + " of " + std::to_string(o.bits) + " bits, groups of " +
         std::to_string(o.group) + ", rank " + std::to_string(o.rank) + ", " + std::to_string(call.tokens) + " tokens";
}

/// `offset`: as of DeviceGrouped.
void expect_product(const GroupedOptions& options, const Call& call, double bound = kExact, int offset = 0) {
  const TestGrouped m(options);
  const DeviceGrouped device(m, offset);
  expect_linear(device.weight(), m.weights, call, text_of(options, call), bound);
}

/// Levels as the encoder writes them.
float largest_of(int bits) { return bits <= 4 ? 127.0f : bits <= 6 ? 2047.0f : 32767.0f; }

TEST(CudaGrouped, MultipliesOneToken) {
  HXQ_NEEDS_GPU();
  const std::pair<int64_t, int64_t> shapes[] = {{1, 128}, {80, 1536}, {300, 768}, {257, 4096}, {5, 16384}, {2700, 896}};
  for (int bits = 3; bits <= 8; ++bits) {
    for (const auto& [rows, cols] : shapes) {
      const GroupedOptions options{.rows = rows, .cols = cols, .bits = bits, .largest = largest_of(bits)};
      expect_product(options, {});
      expect_product(options, {.x = DType::bf16, .y = DType::bf16, .gap = 3, .bias = true, .accumulate = true});
    }
  }
}

TEST(CudaGrouped, TakesGroupsOfAnySize) {
  HXQ_NEEDS_GPU();
  for (int bits = 3; bits <= 8; ++bits) {
    for (const int64_t group : {8, 16, 24, 32, 40, 64, 96, 128, 512, 4096}) {
      for (const int64_t cols : {512, 1000}) {
        for (const int64_t tokens : {1, 3, 11}) {
          expect_product({.rows = 90, .cols = cols, .bits = bits, .group = group, .largest = largest_of(bits)},
                         {.tokens = tokens, .gap = 4});
        }
      }
    }
  }
}

TEST(CudaGrouped, TakesRowsThatAreNotAligned) {
  HXQ_NEEDS_GPU();
  for (int bits = 3; bits <= 8; ++bits) {
    for (const int64_t cols : {1, 5, 8, 33, 50, 77, 1001}) {
      expect_product({.rows = 33, .cols = cols, .bits = bits, .group = 16, .largest = largest_of(bits)}, {});
    }
    for (const int offset : {1, 2, 3, 4, 7}) {
      expect_product({.rows = 33, .cols = 256, .bits = bits, .largest = largest_of(bits)}, {}, kExact, offset);
    }
  }
}

TEST(CudaGrouped, MultipliesAnyNumberOfTokens) {
  HXQ_NEEDS_GPU();
  open_cublas();
  for (int bits = 3; bits <= 8; ++bits) {
    const GroupedOptions options{.rows = 150, .cols = 512, .bits = bits, .largest = largest_of(bits)};
    for (const int64_t tokens : {2, 3, 4, 5, 7, 8, 9, 17, 40, 41, 112, 113, 200}) {
      expect_product(options, {.tokens = tokens, .gap = 1, .bias = true});
      expect_product(options, {.tokens = tokens, .x = DType::bf16, .y = DType::bf16, .gap = 8, .accumulate = true});
      expect_product(options, {.tokens = tokens, .gap = 4, .bias = true, .precision = Precision::fast}, kFast);
      expect_product(options,
                     {.tokens = tokens,
                      .x = DType::bf16,
                      .y = DType::bf16,
                      .gap = 8,
                      .bias = true,
                      .accumulate = true,
                      .precision = Precision::fast},
                     kFast);
    }
  }
}

TEST(CudaGrouped, AddsLowRankTerms) {
  HXQ_NEEDS_GPU();
  open_cublas();
  for (const int64_t rank : {1, 4, 9}) {
    for (const int64_t cols : {512, 330}) {
      for (const int64_t tokens : {1, 2, 6, 60, 150}) {
        const GroupedOptions options{.rows = 90, .cols = cols, .bits = 4, .rank = rank};
        expect_product(options, {.tokens = tokens, .bias = true});
        expect_product(options, {.tokens = tokens, .gap = 4, .precision = Precision::fast}, kFast);
      }
    }
  }
}

TEST(CudaGrouped, TakesAnyLevels) {
  HXQ_NEEDS_GPU();
  for (int bits = 3; bits <= 8; ++bits) {
    const GroupedOptions options{.rows = 90, .cols = 512, .bits = bits, .whole_levels = false};
    for (const int64_t tokens : {1, 6}) expect_product(options, {.tokens = tokens});
  }
  expect_product({.rows = 90, .cols = 512, .bits = 8, .group = 32, .uniform = true}, {});
}

TEST(CudaGrouped, KeepsValuesFarApart) {
  HXQ_NEEDS_GPU();
  const TestGrouped m({.rows = 64, .cols = 256, .bits = 6, .largest = 2047});
  const DeviceGrouped device(m);
  Random random(5);
  std::vector<float> x;
  for (const float size : {1e30f, 1e-28f, 7e4f, 0.0f, 1.0f}) {
    const std::vector<float> row = random.normals(256, DType::f32, size);
    x.insert(x.end(), row.begin(), row.end());
  }
  const DeviceRows device_x(x, 5, 256, 0, DType::f32), device_y(5, 64, 0, DType::f32);
  HXQ_EXPECT_OK(
      linear(device.weight(), {.x = device_x.input(), .y = device_y.output(), .tokens = 5, .workspace = {}}, nullptr));
  expect_finished();
  const Product expected = multiply_rows(m.weights, 64, 256, x, 5, {}, {});
  expect_close(device_y.values(), expected.y, expected.size, kExact, DType::f32, "sizes");
}

TEST(CudaGrouped, FusesProductsAndTheNormBeforeThem) {
  HXQ_NEEDS_GPU();
  for (const int64_t cols : {256, 2048, 5632}) {
    std::vector<TestGrouped> matrices;
    for (const GroupedOptions& options :
         {GroupedOptions{.rows = 700, .cols = cols, .seed = 1}, GroupedOptions{.rows = 1, .cols = cols, .seed = 2},
          GroupedOptions{.rows = 130, .cols = cols, .rank = 2, .seed = 3}}) {
      matrices.emplace_back(options);
    }
    std::vector<DeviceGrouped> on_device;
    for (const TestGrouped& m : matrices) on_device.emplace_back(m);
    const std::vector<float> read = Random(17).normals(static_cast<size_t>(cols));
    const std::vector<float> weight = Random(18).normals(static_cast<size_t>(cols)), bias = Random(3).normals(700);
    double squares = 0;
    for (const float value : read) squares += static_cast<double>(value) * value;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
    const DeviceRows x(read, 1, cols, 0, DType::f32);
    const DeviceArray<float> norm_weight(weight), device_bias(bias);
    for (const bool normed : {false, true}) {
      std::vector<double> multiplied;
      for (size_t c = 0; c < read.size(); ++c) multiplied.push_back(normed ? read[c] * scale * weight[c] : read[c]);
      FusedInput input{.x = x.input()};
      if (normed) input.norm_weight = norm_weight.data(), input.eps = 1e-5f;
      std::vector<DeviceRows> y;
      GroupedProduct products[3];
      for (size_t i = 0; i < 3; ++i) {
        y.emplace_back(1, matrices[i].view.rows, 0, DType::f32);
        if (i == 2) y[i].set(std::vector<float>(130, 0.5f));
        products[i] = {.weight = on_device[i].weight(),
                       .y = y[i].output(),
                       .bias = i == 0 ? device_bias.data() : nullptr,
                       .accumulate = i == 2};
      }
      ASSERT_TRUE(supports_fused_linear(input, products, 3));
      HXQ_EXPECT_OK(fused_linear(input, products, 3, nullptr));
      expect_finished();
      for (size_t i = 0; i < 3; ++i) {
        const Product expected = multiply_rows(matrices[i].weights, matrices[i].view.rows, cols, multiplied, 1,
                                               i == 0 ? bias : std::vector<float>{},
                                               i == 2 ? std::vector<float>(130, 0.5f) : std::vector<float>{});
        expect_close(y[i].values(), expected.y, expected.size, kExact, DType::f32, std::to_string(cols) + " columns");
      }
    }
  }
}

TEST(CudaGrouped, LooksRowsUp) {
  HXQ_NEEDS_GPU();
  for (int bits = 3; bits <= 8; ++bits) {
    for (const auto& [cols, rank] : {std::pair<int64_t, int64_t>{512, 0}, {77, 2}, {1, 0}, {2400, 1}}) {
      const TestGrouped m({.rows = 40, .cols = cols, .bits = bits, .group = 24, .rank = rank});
      const DeviceGrouped device(m);
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const std::vector<int32_t> ids = {3, 39, 0, -1, 3};
        const DeviceArray<int32_t> device_ids(ids);
        const DeviceRows out(5, cols, 3, dtype), decoded(7, cols, 8, dtype);
        HXQ_EXPECT_OK(
            gather_rows(device.weight(), {.ids = device_ids.data(), .count = 5, .out = out.output()}, nullptr));
        HXQ_EXPECT_OK(decode_rows(device.weight(), {.first_row = 33, .rows = 7, .out = decoded.output()}, nullptr));
        expect_finished();
        const auto expect_rows = [&](const DeviceRows& rows, const std::vector<int32_t>& of) {
          std::vector<double> expected, size;
          for (const int32_t id : of) {
            for (int64_t c = 0; c < cols; ++c) {
              expected.push_back(id < 0 ? 0.0 : m.weight(id, c));
              size.push_back(rank > 0 ? 10.0 : std::fabs(expected.back()));
            }
          }
          expect_close(rows.values(), expected, size, rank > 0 ? 1e-6 : 0.0, dtype, std::to_string(bits) + " bits");
        };
        expect_rows(out, ids);
        expect_rows(decoded, {33, 34, 35, 36, 37, 38, 39});
      }
    }
  }
}

TEST(CudaGrouped, RefusesWhatItCannotTake) {
  HXQ_NEEDS_GPU();
  const TestGrouped m({.rows = 8, .cols = 128, .rank = 9});
  const DeviceGrouped device(m);
  const DeviceRows x(std::vector<float>(256, 1.0f), 2, 128, 0, DType::f32), y(2, 8, 0, DType::f32);
  EXPECT_EQ(linear(device.weight(), {.x = x.input(), .y = y.output(), .tokens = 2, .workspace = {}}, nullptr),
            Status::invalid_value)
      << "no workspace";
  const GroupedProduct product{.weight = device.weight(), .y = y.output()};
  EXPECT_EQ(fused_linear({.x = x.input()}, &product, 1, nullptr), Status::invalid_value) << "rank 9";
  EXPECT_EQ(decode_rows(device.weight(), {.first_row = 1, .rows = 8, .out = y.output()}, nullptr),
            Status::invalid_value);
}

}  // namespace
}  // namespace hxq::cuda
