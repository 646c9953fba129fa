#pragma once

#include "codec/codec.h"

namespace hxq {

/// Packed indices into levels for the whole matrix, and a scale for every group of adjacent weights: docs/format.md.
extern const Codec kGroupedCodec;

}  // namespace hxq
