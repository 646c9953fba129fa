#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "codec/packed_tensor.h"
#include "hxq/tensor.h"

namespace hxq::testing {

template <class T>
std::vector<T> values_of(const Plane& plane) {
  std::vector<T> values(plane.bytes.size() / sizeof(T));
  std::memcpy(values.data(), plane.bytes.data(), plane.bytes.size());
  return values;
}

/// SNR, in dB, of what the planes of a scalar codebook with byte indices decode to, by the format's definition.
inline double decoded_snr_db(const TensorView& source, const PackedTensor& packed) {
  const auto codebook = values_of<float>(packed.planes[0]);
  std::vector<float> decoded;
  for (const uint8_t index : values_of<uint8_t>(packed.planes[1])) decoded.push_back(codebook[index]);
  if (packed.planes.size() > 2) {
    const auto positions = values_of<int64_t>(packed.planes[2]);
    const auto values = values_of<float>(packed.planes[3]);
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
