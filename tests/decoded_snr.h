#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/encoder.h"
#include "hxq/tensor.h"

namespace hxq::testing {

template <class T>
std::vector<T> values_of(const EncodedPart& part) {
  std::vector<T> values(part.bytes.size() / sizeof(T));
  std::memcpy(values.data(), part.bytes.data(), part.bytes.size());
  return values;
}

/// SNR, in dB, of what the parts of a scalar codebook with byte indices decode to, by the format's definition.
inline double decoded_snr_db(const TensorView& source, const EncodedTensor& encoded) {
  const auto codebook = values_of<float>(encoded.parts[0]);
  std::vector<float> decoded;
  for (const uint8_t index : values_of<uint8_t>(encoded.parts[1])) decoded.push_back(codebook[index]);
  if (encoded.parts.size() > 2) {
    const auto positions = values_of<int64_t>(encoded.parts[2]);
    const auto values = values_of<float>(encoded.parts[3]);
    for (size_t i = 0; i < positions.size(); ++i) decoded[static_cast<size_t>(positions[i])] = values[i];
  }
  const std::vector<float> weights = to_float(source);
  double signal = 0, error = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const double w = weights[i], difference = w - static_cast<double>(decoded[i]);
    signal += w * w;
    error += difference * difference;
  }
  return 10 * std::log10(signal / error);
}

}  // namespace hxq::testing
