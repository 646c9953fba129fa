#pragma once

#include <vector>

#include "layers/block.h"

namespace hxq {

/// A weight with its optional bias.
class Projection {
 public:
  Projection(const WeightSource& source, WeightId weight, WeightId bias = kNoWeight)
      : weight_(source.matrix(weight)), bias_(source.vector(bias)) {}

  /// y = x W^T + bias, see `linear`. args.bias is not looked at.
  void operator()(kernels::LinearArgs args, const kernels::Context& context) const noexcept {
    args.bias = bias_.empty() ? nullptr : bias_.data();
    linear(*weight_, args, context);
  }

 private:
  const Weight* weight_;     // [out, in]
  std::vector<float> bias_;  // [out] or empty
};

}  // namespace hxq
