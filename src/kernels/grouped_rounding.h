#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "codec/grouped/matrix.h"

namespace hxq::kernels {

/// What the integers that stand for the weights of a row are off by at most (cpu::GroupedView): half of one each for
/// the scale, in 32767ths of the power of two above the row's largest, and for its product with the level. Where levels
/// are no whole numbers weights are exact.
inline double largest_weight_error(const GroupedMatrix& matrix, int64_t row) {
  const auto largest = [](std::span<const float> values) {
    double most = 0;
    for (const float value : values) most = std::max(most, std::fabs(static_cast<double>(value)));
    return most;
  };
  const double level = largest(matrix.levels), of_all = largest(matrix.scale_levels);
  if (level == 0 || level > 32767) return 0;
  double scale = of_all * 0x1p-100;  // rows below lose bits
  for (int64_t g = 0; g < matrix.groups(); ++g) {
    const auto code = static_cast<size_t>(matrix.scales[static_cast<size_t>(row * matrix.groups() + g)]);
    scale = std::max(scale, std::fabs(static_cast<double>(matrix.scale_levels[code])));
  }
  const double above = scale == 0 ? 0 : std::ldexp(1.0, std::ilogb(scale) + 1), unit = std::floor(32767 / level);
  return (level * unit / 0x1p15 + 1) / 2 * 0x1p15 / 32767 * above / unit;
}

}  // namespace hxq::kernels
