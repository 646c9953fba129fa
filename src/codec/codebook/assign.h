#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/codebook/fit.h"
#include "codec/codebook/value_histogram.h"
#include "codec/fidelity.h"

namespace hxq {

struct Assignment {
  std::vector<int64_t> outliers = {};  ///< ascending flat positions
  Fidelity fidelity = {};
};

/// Writes the index of the nearest level of every element to `indices` [weights.size()] (ties to the lower level) and
/// lists the outliers. Of a slot that is an outlier in part, the elements at the lowest positions are taken.
/// The answer does not depend on `threads` (>= 1).
Assignment assign(const Weights& weights, const ValueHistogram& histogram, const CodebookFit& fit, int threads,
                  std::span<std::byte> indices);

}  // namespace hxq
