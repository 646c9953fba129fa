#pragma once

namespace hxq {

/// Levels in segments: level[8 h + l] = base[h] + slope[h] l for h < 32, l < 8, in whole numbers; all slopes are bytes
/// without sign times one power of two, 1 to 16. A processor without large tables finds base and slope among 32 in
/// place of a level among 256.
inline constexpr int kSegments = 32;
inline constexpr int kSegmentSteps = 8;
inline constexpr int kMostSegmentShift = 4;

}  // namespace hxq
