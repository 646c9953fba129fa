#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/codebook/value_histogram.h"

namespace hxq {

/// Levels in segments: level[8 h + l] = base[h] + slope[h] l for h < 32, l < 8, in whole numbers; all slopes are bytes
/// without sign times one power of two, 1 to 16. A processor without large tables finds base and slope among 32 in
/// place of a level among 256.
inline constexpr int kSegments = 32;
inline constexpr int kSegmentSteps = 8;

/// The 256 levels in segments that come close to the least squared error for the elements that are not outliers:
/// ascending, and rounded as `snap_levels` and `whole_levels` do. Segments are cut where `levels` (256 of them, those
/// of the least error) have borders, by dynamic programming over what each would cost, then improved in turns of
/// assigning values and fitting lines. `outliers`: [slots of the histogram], how many elements of each are outliers.
std::vector<float> segment_levels(const ValueHistogram& histogram, std::span<const int64_t> outliers,
                                  std::span<const float> levels);

}  // namespace hxq
