#include "kernels/cpu/codebook_lookup_planes.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>

#include "io/half.h"

namespace hxq::kernels::cpu {
namespace {

/// The power of two that puts the largest level into [2^14, 2^15); 0 if it is no normal float.
float half_scale(std::span<const float> codebook) {
  float largest = 0;
  for (const float level : codebook) {
    if (!std::isfinite(level)) return 0;
    largest = std::max(largest, std::fabs(level));
  }
  if (largest == 0) return 1;
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest in [2^(exponent - 1), 2^exponent)
  const float scale = std::ldexp(1.0f, exponent - 15);
  return scale >= FLT_MIN ? scale : 0;
}

void put_bytes(std::span<LookupPlanes::BytePlane> planes, size_t level, uint32_t value) {
  for (size_t b = 0; b < planes.size(); ++b) planes[b][level] = static_cast<uint8_t>(value >> (8 * b));
}

}  // namespace

LookupPlanes make_planes(std::span<const float> codebook) {
  LookupPlanes planes;
  if (codebook.empty() || codebook.size() > 256) return planes;
  const float scale = half_scale(codebook);
  const auto is_half = [&](float level) {
    const float restored = scale * float_from_f16(f16_from_float(level / scale));
    return std::bit_cast<uint32_t>(restored) == std::bit_cast<uint32_t>(level);
  };
  if (scale > 0 && std::all_of(codebook.begin(), codebook.end(), is_half)) {
    planes.kind = LookupPlanes::Kind::half;
    planes.scale = scale;
    planes.integer_levels = true;
    for (size_t i = 0; i < codebook.size(); ++i) {
      const float level = codebook[i] / scale;
      planes.integer_levels = planes.integer_levels && std::nearbyint(level) == level;
      put_bytes(planes.half, i, f16_from_float(level));
      put_bytes(planes.integer, i, static_cast<uint32_t>(static_cast<int>(level)));
    }
  } else {
    planes.kind = LookupPlanes::Kind::float32;
    for (size_t i = 0; i < codebook.size(); ++i) put_bytes(planes.float32, i, std::bit_cast<uint32_t>(codebook[i]));
  }
  return planes;
}

}  // namespace hxq::kernels::cpu
