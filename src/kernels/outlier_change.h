#pragma once

#include <cstdint>

namespace hxq::kernels {

/// What an outlier changes in a product with x: y[row] += change * x[col], change = value - the codebook's weight.
struct OutlierChange {
  uint32_t row;
  uint32_t col;
  float change;
};

}  // namespace hxq::kernels
