#pragma once

#include "kernels/kernels.h"
#include "layers/block.h"

namespace hxq {

/// Root-mean-square norm with its weight; see kernels::rms_norm.
class RmsNorm {
 public:
  RmsNorm(const WeightSource& source, WeightId weight, float eps, int64_t groups = 1)
      : weight_(source.vector(weight)), eps_(eps), groups_(groups) {}

  /// x and y: [rows, dim], may be the same.
  kernels::RmsNormArgs operator()(const float* x, float* y, int64_t rows) const noexcept {
    return {.x = x,
            .weight = weight_.data(),
            .y = y,
            .tokens = rows,
            .dim = weight_.size(),
            .groups = groups_,
            .eps = eps_};
  }

 private:
  kernels::DeviceArray<float> weight_;  // [dim]
  float eps_;
  int64_t groups_;
};

}  // namespace hxq
