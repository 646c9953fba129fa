#pragma once

#include <cstdint>
#include <optional>

#include "codec/encoder.h"
#include "hxq/tensor.h"

namespace hxq {

struct CodebookOptions {
  double sidecar_fraction = 0.001;  ///< largest share of the elements stored exactly beside the codes, 0 to 1
  int32_t max_codewords = 256;      ///< 1 to 256
  int threads = 0;                  ///< 0: one per core; the answer does not depend on it
  /// Pairs of the low-rank term that is stored apart, the leading singular ones, at most as many as the matrix has;
  /// empty: a term where it pays.
  std::optional<int> low_rank = {};
  bool in_segments = false;  ///< levels as of `segment_levels`; of 256 codewords only
};

/// Encodes a matrix as a scalar codebook, one byte per weight, exact outliers, and a low-rank term where it pays. The
/// optimum over the whole tensor for the squared error (`fit_codebook`): no sampling, no seed, the same bytes for any
/// number of threads.
///
/// A term pays if it lowers the error by more than its bits would elsewhere: a bit per weight is worth a factor of 4.
/// It takes the place of outliers where the matrix would otherwise grow by more than `kTermBits` bits per weight.
///
/// `source`: F32, F16 or BF16, [rows, cols], not empty; its bytes need not be aligned. Parts of the answer:
///
///     codebook           F32 [k]           ascending, rounded as `snap_levels` says
///     indices            U8  [rows, cols]
///     sidecar_positions  I64 [n]           ascending flat row-major positions; absent when n = 0
///     sidecar_values     F32 [n]           the source's values at those positions, less the term; absent when n = 0
///     svd_U              F16 [rows, r]     the term, U diag(s) Vt; absent when r = 0
///     svd_s              F32 [r]
///     svd_Vt             F16 [r, cols]
///
/// Throws `Error` for values that are not finite (how many, and where the first is), for another dtype or rank, for
/// bytes that do not match the shape, and for options out of range.
EncodedTensor encode_codebook(const TensorView& source, const CodebookOptions& options);

/// What a term may add, in bits per weight.
inline constexpr double kTermBits = 0.02;

extern const Encoder kCodebookEncoder;

}  // namespace hxq
