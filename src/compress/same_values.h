#pragma once

#include "hxq/tensor.h"

namespace hxq {

/// Whether two tensors hold the same numbers: the same bytes in one dtype, or floating-point tensors of two dtypes
/// whose values are equal element by element (a bf16 norm kept as f32, say).
bool same_values(const TensorView& a, const TensorView& b);

}  // namespace hxq
