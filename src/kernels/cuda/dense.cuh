#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// y = W (x / input_scales) in float. `input_scales`: [cols], or null.
Status dense_linear(const DenseWeight& weight, const LinearArgs& args, const float* input_scales,
                    Stream stream) noexcept;

}  // namespace hxq::cuda
