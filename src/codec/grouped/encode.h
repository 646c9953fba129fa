#pragma once

#include "codec/encoder.h"

namespace hxq {

/// Encodes a matrix as levels and scales of groups, fitted to the squared error: `fit_groups` on a sample of its groups
/// (all of them in a small matrix), then every group's scale and every weight's level. The same bytes for any number
/// of threads. Levels are whole numbers (`largest_level`), so that products can be summed as integers.
extern const Encoder kGroupedEncoder;

}  // namespace hxq
