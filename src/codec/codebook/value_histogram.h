#pragma once

#include <cstdint>
#include <vector>

#include "codec/weights.h"

namespace hxq {

/// The values of a matrix in ascending order with how often each occurs. A slot is one distinct value or, for a large
/// one of floats, the elements that agree in sign, exponent and the upper 12 bits of the mantissa. -0 counts as 0.
struct ValueHistogram {
  std::vector<double> value = {};   // [n] ascending, distinct: the exact mean of the slot's elements
  std::vector<int64_t> count = {};  // [n] > 0
  std::vector<float> low = {};      // [n] an element x belongs to the slot with low <= x <= high
  std::vector<float> high = {};     // [n]

  size_t size() const noexcept { return value.size(); }
};

/// Counts the values of weights. The answer does not depend on `threads` (>= 1).
/// Throws `Error` if a value is not finite, with how many are not and the first one's flat position.
ValueHistogram count_values(const Weights& weights, int threads);

}  // namespace hxq
