#include "kernels/cpu/codebook_lookup_planes.h"

#include <bit>
#include <cmath>

#include "io/half.h"
#include "kernels/codebook_facts.h"

namespace hxq::kernels::cpu {
namespace {

void put_bytes(std::span<LookupPlanes::BytePlane> planes, size_t level, uint32_t value) {
  for (size_t b = 0; b < planes.size(); ++b) planes[b][level] = static_cast<uint8_t>(value >> (8 * b));
}

}  // namespace

LookupPlanes make_planes(std::span<const float> codebook) {
  LookupPlanes planes;
  if (codebook.empty() || codebook.size() > 256) return planes;
  const auto [scale, fits_half] = level_scale(codebook);
  if (fits_half) {
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
