#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/codebook/segment_form.h"

namespace hxq::kernels::cpu {

/// A scalar codebook of at most 256 levels cut into byte planes, so that a processor with byte permutes can keep the
/// whole table in registers: byte b (little-endian) of the number that stands for level i is [b][i] of its planes.
struct LookupPlanes {
  enum class Kind : uint8_t {
    none,     ///< no planes: a vector codebook, or more than 256 levels
    half,     ///< every level is scale times a binary16 number, exactly
    float32,  ///< any levels
  };
  using BytePlane = std::array<uint8_t, 256>;

  Kind kind = Kind::none;
  float scale = 1;              ///< a power of two
  bool integer_levels = false;  ///< `half`, and every level / scale is an integer, none -0
  /// `integer_levels`: [2], of level / scale as a signed 16-bit integer: integer dot products then take the place of
  /// conversions to float. Other `half`: [2], of level / scale in binary16. `float32`: [4], of the levels themselves.
  std::vector<BytePlane> bytes = {};
  /// `integer_levels` in segments (codec/codebook/segment_form.h): [slope >> segment_shift, bytes of base, low and
  /// high][h].
  bool has_segments = false;
  int32_t segment_shift = 0;  ///< 0 to kMostSegmentShift
  alignas(32) std::array<std::array<uint8_t, kSegments>, 3> segments = {};
};

/// The planes of a scalar codebook [k]; `half` whenever every level equals s * h with one power of two s and h in
/// binary16 such that the largest |h| lies in [2^14, 2^15). Empty (`none`) for k = 0 or k > 256.
LookupPlanes make_planes(std::span<const float> codebook);

}  // namespace hxq::kernels::cpu
