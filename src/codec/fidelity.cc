#include "codec/fidelity.h"

#include <cmath>
#include <limits>

namespace hxq {

double Fidelity::snr_db() const {
  if (squared_error == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / squared_error);
}

double Fidelity::cosine() const {
  const double norms = std::sqrt(signal) * std::sqrt(decoded);
  if (norms == 0) return signal == decoded ? 1 : 0;
  return dot / norms;
}

}  // namespace hxq
