#pragma once

#include <cstdint>
#include <span>

#include "codec/codebook.h"

namespace hxq {

/// Decodes a whole matrix; `out` is [rows, cols]. Scalar and obvious: it is the specification of the format.
///
///     W[r, c] = codebook[index(r, c / d)][c % d]
///     W[r, c] = sidecar value, where the sidecar has one
///     W[r, c] = W[r, c] + sum over i of (U[r, i] s[i]) Vt[i, c]      summed in double, rounded once to float
///
/// The channel scales are not folded in: the result is the matrix that x / channel_scales is multiplied with.
void decode_reference(const CodebookMatrix& matrix, std::span<float> out);

/// Rows [row_begin, row_end) of the same; `out` is [row_end - row_begin, cols].
void decode_rows_reference(const CodebookMatrix& matrix, int64_t row_begin, int64_t row_end, std::span<float> out);

/// The same rows with the channel scales divided out: those of the dense matrix that y = W x multiplies with, and that
/// an embedding gives.
void decode_dense_rows(const CodebookMatrix& matrix, int64_t row_begin, int64_t row_end, std::span<float> out);

}  // namespace hxq
