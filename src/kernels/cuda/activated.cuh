// Functions of gated MLPs.

#pragma once

#include "desc/activation.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {

__device__ inline float activated(float x, Activation activation) {
  return activation == Activation::silu ? silu(x) : 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

}  // namespace hxq::cuda
