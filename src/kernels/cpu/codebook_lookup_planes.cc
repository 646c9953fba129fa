#include "kernels/cpu/codebook_lookup_planes.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "io/half.h"
#include "kernels/codebook_facts.h"

namespace hxq::kernels::cpu {
namespace {

void put_bytes(std::span<LookupPlanes::BytePlane> planes, size_t level, uint32_t value) {
  for (size_t b = 0; b < planes.size(); ++b) planes[b][level] = static_cast<uint8_t>(value >> (8 * b));
}

/// Fills in `segments` if the integer levels lie in such.
void find_segments(std::span<const float> levels, float scale, LookupPlanes& planes) {
  constexpr size_t kSteps = kSegmentSteps;
  if (levels.size() != kSteps * kSegments) return;
  std::array<uint32_t, kSegments> slopes;
  uint32_t bits = 0;  // of all slopes
  for (size_t h = 0; h < kSegments; ++h) {
    const std::span<const float> segment = levels.subspan(kSteps * h, kSteps);
    const float base = segment[0] / scale, slope = segment[1] / scale - base;
    for (size_t l = 2; l < kSteps; ++l) {
      if (segment[l] / scale != base + slope * static_cast<float>(l)) return;
    }
    if (!(slope >= 0)) return;
    slopes[h] = static_cast<uint32_t>(slope);
    bits |= slopes[h];
    const auto base_bits = static_cast<uint32_t>(static_cast<int>(base));
    planes.segments[1][h] = static_cast<uint8_t>(base_bits);
    planes.segments[2][h] = static_cast<uint8_t>(base_bits >> 8);
  }
  planes.segment_shift = bits == 0 ? 0 : std::min(std::countr_zero(bits), kMostSegmentShift);
  if (bits >> planes.segment_shift > 255) return;
  for (size_t h = 0; h < kSegments; ++h) {
    planes.segments[0][h] = static_cast<uint8_t>(slopes[h] >> planes.segment_shift);
  }
  planes.has_segments = true;
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
    if (planes.integer_levels) find_segments(codebook, scale, planes);
  } else {
    planes.kind = LookupPlanes::Kind::float32;
    for (size_t i = 0; i < codebook.size(); ++i) put_bytes(planes.float32, i, std::bit_cast<uint32_t>(codebook[i]));
  }
  return planes;
}

}  // namespace hxq::kernels::cpu
