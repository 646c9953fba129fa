#pragma once

#include <string_view>

#include "codec/codebook/matrix.h"
#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// Shape [rows, cols] of a compressed module, from its tensors' shapes alone. Flat 12-bit indices do not say it; it
/// is then taken from the low-rank factors, the channel scales, the bias or an exact copy, and if none is there the
/// result is flat, [rows * cols]. Throws `Error` if the shapes are not those of a compressed matrix.
Shape codebook_matrix_shape(const Checkpoint& checkpoint, std::string_view module);

/// Reads a compressed module and checks everything that kernels rely on: dtypes and shapes, every index < k (free for
/// U8 with k >= 256, otherwise the indices are read once), positions inside the matrix, finite values, channel scales
/// not zero. The indices stay where they are: the checkpoint must outlive the result.
///
/// `expected`: the parameter's shape where the caller knows it (dimensions before the last are taken together); a
/// different one is an `Error`. Needed for flat 12-bit indices whose shape `codebook_matrix_shape` cannot tell.
///
/// Sidecar positions may come in any order; of equal ones the last counts. Optional tensors without elements count
/// as absent. Throws `Error` naming file and tensor.
CodebookMatrix read_codebook_matrix(const Checkpoint& checkpoint, std::string_view module, const Shape& expected = {});

}  // namespace hxq
