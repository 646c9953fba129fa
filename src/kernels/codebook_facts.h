#pragma once

#include <span>
#include <vector>

#include "codec/codebook/matrix.h"

/// What devices work out for themselves of a codebook matrix.
namespace hxq::kernels {

/// How the levels of a scalar codebook fit 16-bit numbers.
struct LevelScale {
  /// The power of two that puts the largest |level| into [2^14, 2^15); 0 if it is no normal float or a level is not
  /// finite, 1 if all are zero.
  float scale = 0;
  bool fits_half = false;  ///< every level is `scale` times a binary16 number, exactly
};

LevelScale level_scale(std::span<const float> codebook);

/// What each outlier changes in a product with x: y[row] += change * x[col], change = value - the codebook's weight.
/// Reads indices all over the matrix. Throws `OutOfMemory`.
std::vector<float> outlier_changes(const CodebookMatrix& matrix);

}  // namespace hxq::kernels
