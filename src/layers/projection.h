#pragma once

#include <optional>

#include "kernels/kernels.h"
#include "layers/block.h"

namespace hxq {

/// y = x W^T (+ bias) (+ y) for all rows of a batch, each in the arithmetic of its phase; see kernels::linear. `tokens`
/// and `phase` of the arguments are not looked at.
void linear(const kernels::PreparedMatrix& weight, const kernels::LinearArgs& args, const kernels::Batch& batch,
            const kernels::Context& context) noexcept;

/// A weight with its optional bias.
class Projection {
 public:
  Projection(const WeightSource& source, WeightId weight, WeightId bias = kNoWeight)
      : weight_(source.matrix(weight)), bias_(source.vector(bias)) {}

  /// See `linear`; nor is `bias` looked at.
  void operator()(kernels::LinearArgs args, const kernels::Batch& batch,
                  const kernels::Context& context) const noexcept {
    args.bias = bias_.data();
    linear(*weight_, args, batch, context);
  }

  int64_t rows() const noexcept { return weight_->rows(); }
  int64_t cols() const noexcept { return weight_->cols(); }

 private:
  const kernels::PreparedMatrix* weight_;  // [out, in]
  kernels::DeviceArray<float> bias_;       // [out] or empty
};

/// A weight that layers may share, with this layer's own low-rank term: y = W x + bias + up (down x).
class AdaptedProjection {
 public:
  AdaptedProjection(const WeightSource& source, const AdaptedWeight& weight, WeightId bias = kNoWeight);

  /// See `linear`; nor is `bias` looked at.
  void operator()(const kernels::LinearArgs& args, const kernels::Batch& batch, WorkMemory work,
                  const kernels::Context& context) const noexcept;

  int64_t rows() const noexcept { return shared_.rows(); }
  int64_t cols() const noexcept { return shared_.cols(); }

 private:
  Projection shared_;               // [out, in]
  std::optional<Projection> down_;  // [rank, in]
  std::optional<Projection> up_;    // [out, rank]
};

}  // namespace hxq
