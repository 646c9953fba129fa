#pragma once

#include "kernels/cuda/mamba_spread_parts.cuh"

namespace hxq::cuda {

/// Launches layers that have a plan.
Status mamba_spread(const mamba_spread_parts::Parameters& p, Stream stream) noexcept;

}  // namespace hxq::cuda
