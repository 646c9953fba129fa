#pragma once

#include "codec/codec.h"

namespace hxq {

/// A codebook for the whole matrix, one index per weight or per run of weights, and a sidecar of outliers:
/// docs/format.md.
extern const Codec kCodebookCodec;

}  // namespace hxq
