#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "codec/encoder.h"
#include "hxq/tensor.h"
#include "io/half.h"

namespace hxq::testing {

template <class T>
std::vector<T> values_of(const EncodedPart& part) {
  std::vector<T> values(part.bytes.size() / sizeof(T));
  std::memcpy(values.data(), part.bytes.data(), part.bytes.size());
  return values;
}

/// What the parts of a scalar codebook with byte indices decode to, by the format's definition, before it is rounded to
/// float.
inline std::vector<double> decoded_values(const EncodedTensor& encoded) {
  const auto part = [&](std::string_view suffix) {
    const auto found = std::ranges::find(encoded.parts, suffix, &EncodedPart::suffix);
    return found == encoded.parts.end() ? EncodedPart{} : *found;
  };
  const auto codebook = values_of<float>(part("codebook"));
  std::vector<double> decoded;
  for (const uint8_t index : values_of<uint8_t>(part("indices"))) decoded.push_back(codebook[index]);
  const auto positions = values_of<int64_t>(part("sidecar_positions"));
  const auto values = values_of<float>(part("sidecar_values"));
  for (size_t i = 0; i < positions.size(); ++i) decoded[static_cast<size_t>(positions[i])] = values[i];
  const auto scales = values_of<float>(part("svd_s"));
  const auto u = values_of<uint16_t>(part("svd_U")), vt = values_of<uint16_t>(part("svd_Vt"));
  const size_t rank = scales.size(), cols = rank == 0 ? 1 : vt.size() / rank;
  for (size_t i = 0; i < decoded.size(); ++i) {
    for (size_t n = 0; n < rank; ++n) {
      const double left = static_cast<double>(float_from_f16(u[i / cols * rank + n])) * scales[n];
      decoded[i] += left * float_from_f16(vt[n * cols + i % cols]);
    }
  }
  return decoded;
}

/// SNR, in dB, of what the parts decode to.
inline double decoded_snr_db(const TensorView& source, const EncodedTensor& encoded) {
  const std::vector<double> decoded = decoded_values(encoded);
  const std::vector<float> weights = to_float(source);
  double signal = 0, error = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double w = weights[i], difference = w - decoded[i];
    signal += w * w;
    error += difference * difference;
  }
  return 10 * std::log10(signal / error);
}

}  // namespace hxq::testing
