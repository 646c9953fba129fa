#pragma once

#include <cstdint>

#include "codec/encoder.h"
#include "hxq/tensor.h"

namespace hxq {

struct CodebookOptions {
  double sidecar_fraction = 0.001;  ///< largest share of the elements stored exactly beside the codes, 0 to 1
  int32_t max_codewords = 256;      ///< 1 to 256
  int threads = 0;                  ///< 0: one per core; the answer does not depend on it
};

/// Encodes a matrix as a scalar codebook, one byte per weight, and exact outliers. The optimum over the whole tensor
/// for the squared error (`fit_codebook`): no sampling, no seed, the same bytes for any number of threads.
///
/// `source`: F32, F16 or BF16, [rows, cols], not empty; its bytes need not be aligned. Parts of the answer:
///
///     codebook           F32 [k]           ascending, rounded as `snap_levels` says
///     indices            U8  [rows, cols]
///     sidecar_positions  I64 [n]           ascending flat row-major positions; absent when n = 0
///     sidecar_values     F32 [n]           the source's values at those positions; absent when n = 0
///
/// Throws `Error` for values that are not finite (how many, and where the first is), for another dtype or rank, for
/// bytes that do not match the shape, and for options out of range.
EncodedTensor encode_codebook(const TensorView& source, const CodebookOptions& options);

extern const Encoder kCodebookEncoder;

}  // namespace hxq
