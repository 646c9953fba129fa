#include "codec/fidelity.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "hxq/error.h"

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

Fidelity& Fidelity::operator+=(const Fidelity& other) {
  count += other.count;
  signal += other.signal;
  decoded += other.decoded;
  dot += other.dot;
  squared_error += other.squared_error;
  max_error = std::max(max_error, other.max_error);
  return *this;
}

Fidelity compare(const TensorView& source, std::span<const float> decoded) {
  const std::vector<float> weights = to_float(source);
  if (weights.size() != decoded.size()) throw Error("the decoded tensor has not as many elements as its source");
  Fidelity fidelity;
  fidelity.count = static_cast<int64_t>(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto w = static_cast<double>(weights[i]);
    const auto d = static_cast<double>(decoded[i]);
    fidelity.signal += w * w;
    fidelity.decoded += d * d;
    fidelity.dot += w * d;
    fidelity.squared_error += (w - d) * (w - d);
    fidelity.max_error = std::max(fidelity.max_error, std::abs(w - d));
  }
  return fidelity;
}

}  // namespace hxq
