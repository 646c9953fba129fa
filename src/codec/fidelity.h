#pragma once

#include <cstdint>
#include <span>

#include "hxq/tensor.h"

namespace hxq {

/// How far a compressed tensor is from its source. Accumulated in double.
struct Fidelity {
  int64_t count = 0;         ///< elements
  double signal = 0;         ///< sum of w^2
  double decoded = 0;        ///< sum of the decoded values' squares
  double dot = 0;            ///< sum of w times its decoded value
  double squared_error = 0;  ///< sum of (w - decoded)^2
  double max_error = 0;      ///< largest |w - decoded|

  /// Signal-to-noise ratio in dB; infinite when the tensor is reproduced exactly.
  double snr_db() const;
  /// Cosine similarity; 1 for two zero tensors.
  double cosine() const;

  Fidelity& operator+=(const Fidelity& other);
};

/// Compares decoded values with their source, element by element. Throws `Error` if the source is not of a
/// floating-point type or the counts differ.
Fidelity compare(const TensorView& source, std::span<const float> decoded);

}  // namespace hxq
