#pragma once

#include "hxq/tensor.h"

namespace hxq {

/// Throws `Error` unless `source` is what encoders take: F32, F16 or BF16, [rows, cols], not empty, with as many bytes
/// as its shape says.
void check_source(const TensorView& source);

/// Throws `Error` for a source some of whose values are not finite: how many, and where the first is.
[[noreturn]] void throw_not_finite(const TensorView& source);

}  // namespace hxq
