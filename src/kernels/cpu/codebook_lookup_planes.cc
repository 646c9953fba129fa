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
  const LevelScale found = level_scale(codebook);
  const float scale = found.scale;
  const auto put = [&](size_t count, auto number_of) {
    planes.bytes.resize(count);
    for (size_t i = 0; i < codebook.size(); ++i) put_bytes(planes.bytes, i, number_of(codebook[i]));
  };
  if (!found.fits_half) {
    planes.kind = LookupPlanes::Kind::float32;
    put(4, [](float level) { return std::bit_cast<uint32_t>(level); });
    return planes;
  }
  planes.kind = LookupPlanes::Kind::half;
  planes.scale = scale;
  // An integer has no -0.
  planes.integer_levels = std::ranges::all_of(codebook, [&](float level) {
    return std::nearbyint(level / scale) == level / scale && (level != 0 || !std::signbit(level));
  });
  if (planes.integer_levels) {
    put(2, [&](float level) { return static_cast<uint32_t>(static_cast<int>(level / scale)); });
    find_segments(codebook, scale, planes);
  } else {
    put(2, [&](float level) { return uint32_t{f16_from_float(level / scale)}; });
  }
  return planes;
}

}  // namespace hxq::kernels::cpu
