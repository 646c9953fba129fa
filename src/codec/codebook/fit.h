#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/codebook/value_histogram.h"

namespace hxq {

/// Codewords and outliers of one tensor.
struct CodebookFit {
  std::vector<float> levels = {};      // [k] ascending, as `snap_levels` or `whole_levels` leaves them
  std::vector<int64_t> outliers = {};  // [slots of the histogram] how many elements of each are outliers
  double error = 0;                    // squared error of all other elements, with each slot's at its mean
};

/// Codewords and outliers that minimise the sum over all other elements of (w - nearest codeword)^2, for at most
/// `max_codewords` (1 to 256) and at most `max_outliers`. The number of outliers is used up unless fewer remove all
/// error; at most one slot is an outlier in part.
///
/// Both are chosen together: the optimal partition of the sorted values with a price per cluster and per outlier,
/// prices found by search (see codec/partition.h); then outliers and clusters in turn until neither improves.
/// `histogram` is not empty.
/// in_segments: the levels for the outliers and the outliers for the levels are then found once more, with levels as of
/// `segment_levels`. Tensors of fewer values than 256 levels and the outliers keep theirs.
CodebookFit fit_codebook(const ValueHistogram& histogram, int32_t max_codewords, int64_t max_outliers,
                         bool in_segments = false);

/// Rounds ascending values so that a runtime can hold them as two byte planes: with s = 2^e for which the largest
/// |level / s| is in [2^14, 2^15), every level / s is an IEEE binary16 number. Duplicates are dropped.
/// Values must be within the range of float.
std::vector<float> snap_levels(std::span<const double> values);

/// Rounds levels that `snap_levels` gave to whole multiples of its s. A runtime can multiply these as integers.
std::vector<float> whole_levels(std::span<const float> levels);

/// Whole levels are taken where they raise the squared error by no more than this factor, 0.002 dB.
inline constexpr double kWholeLevelCost = 1.0005;

/// Upper ends of what each level but the last stands for: the midpoint between neighbours, which belongs to the lower.
std::vector<double> thresholds_of(std::span<const float> levels);

}  // namespace hxq
