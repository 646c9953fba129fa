#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/codebook/segment_form.h"
#include "codec/codebook/value_histogram.h"

namespace hxq {

/// The 256 levels in segments (segment_form.h) that come close to the least squared error for the elements that are not
/// outliers: ascending, and rounded as `snap_levels` and `whole_levels` do. Segments are cut where `levels` (256 of
/// them, those of the least error) have borders, by dynamic programming over what each would cost, then improved in
/// turns of assigning values and fitting lines. `outliers`: [slots of the histogram], how many elements of each are
/// outliers.
std::vector<float> segment_levels(const ValueHistogram& histogram, std::span<const int64_t> outliers,
                                  std::span<const float> levels);

}  // namespace hxq
