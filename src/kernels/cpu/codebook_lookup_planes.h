#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace hxq::kernels::cpu {

/// A scalar codebook of at most 256 levels cut into byte planes, so that a processor with byte permutes can keep the
/// whole table in registers: plane[b][i] is byte b (little-endian) of the code of level i.
struct LookupPlanes {
  enum class Kind : uint8_t {
    none,     ///< no planes: a vector codebook, or more than 256 levels
    half,     ///< two planes: codes are IEEE binary16, level = scale * code, exactly
    float32,  ///< four planes: codes are the levels themselves
  };
  Kind kind = Kind::none;
  float scale = 1;  ///< a power of two
  /// `half`, and codes are whole numbers n: plane[2] has their low bytes, plane[3] their high bytes + 128, so that
  /// n = plane[2][i] + 256 * (plane[3][i] - 128). Integer dot products then take the place of conversions to float.
  bool whole = false;
  alignas(64) std::array<std::array<uint8_t, 256>, 4> plane = {};
};

/// The planes of a scalar codebook [k]; `half` whenever every level equals s * h with one power of two s and h in
/// binary16 such that the largest |h| lies in [2^14, 2^15). Empty (`none`) for k = 0 or k > 256.
LookupPlanes make_planes(std::span<const float> codebook);

}  // namespace hxq::kernels::cpu
