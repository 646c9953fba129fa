#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "hxq/tensor.h"
#include "io/half.h"

namespace hxq::testing {

/// A matrix in memory at an address that is not aligned for its type.
class Matrix {
 public:
  /// `values` [rows, cols], rounded to `dtype` (F32, F16 or BF16).
  Matrix(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values)
      : dtype_(dtype), shape_{rows, cols}, bytes_(1 + values.size() * size_of(dtype)) {
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits = std::bit_cast<uint32_t>(values[i]);
      if (dtype == DType::f16) bits = f16_from_float(values[i]);
      if (dtype == DType::bf16) bits = bf16_from_float(values[i]);
      std::memcpy(bytes_.data() + 1 + i * size_of(dtype), &bits, size_of(dtype));
    }
  }

  TensorView view() const { return {dtype_, shape_, std::span(bytes_).subspan(1)}; }

 private:
  DType dtype_;
  Shape shape_;
  std::vector<std::byte> bytes_;
};

/// `count` values of a distribution of weights, scaled to about 0.02.
inline std::vector<float> draw(const std::string& distribution, int count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(-1, 1);
  const auto one = [&]() -> double {
    if (distribution == "gaussian") return normal(random);
    if (distribution == "laplace") {
      const double u = uniform(random);
      return std::copysign(std::log(std::max(1 - std::abs(u), 1e-9)), u);
    }
    if (distribution == "student3") {
      const double a = normal(random), b = normal(random), c = normal(random);
      return normal(random) / std::sqrt((a * a + b * b + c * c) / 3);
    }
    if (distribution == "cauchy") return normal(random) / normal(random);
    if (distribution == "mixture")
      return normal(random) * (uniform(random) > 0.8 ? 10 : 1) + (uniform(random) > 0 ? 3 : 0);
    if (distribution == "uniform") return uniform(random);
    throw std::invalid_argument(distribution);
  };
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(0.02 * one());
  return values;
}

}  // namespace hxq::testing
