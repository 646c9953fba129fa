#pragma once

#include <optional>

#include "kernels/fused_linear.h"
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
    const kernels::LinearProduct product = with(args);
    linear(*product.weight, product.args, batch, context);
  }
  /// The same as a part of `fused_linear`.
  kernels::LinearProduct with(kernels::LinearArgs args) const noexcept {
    args.bias = bias_.data();
    return {.weight = weight_, .args = args};
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

  int64_t rows() const noexcept { return shared_.rows(); }

 private:
  friend class JointProjections;

  Projection shared_;               // [out, in]
  std::optional<Projection> down_;  // [rank, in]
  std::optional<Projection> up_;    // [out, rank]
};

/// Projections of the same x [rows, ..], perhaps after a norm or an activation whose y is x: kernels::fused_linear for
/// all rows of a batch.
class JointProjections {
 public:
  JointProjections(const std::optional<kernels::RmsNormArgs>& norm, const float* x, int64_t x_stride) noexcept
      : x_(x), x_stride_(x_stride), fused_{.norm = norm} {}
  explicit JointProjections(const kernels::GatedActivationArgs& activation) noexcept
      : x_(activation.y), x_stride_(activation.y_stride), fused_{.activation = activation} {}

  /// y = projection(x) (+ y): [rows, out], rows y_stride apart.
  void add(const Projection& projection, float* y, int64_t y_stride, bool accumulate = false) noexcept;
  void add(const AdaptedProjection& projection, float* y, int64_t y_stride, int64_t rows, WorkMemory& work) noexcept;
  /// x of the arguments is not looked at.
  void add(const kernels::LinearProduct& product) noexcept;
  void run(const kernels::Batch& batch, const kernels::Context& context) const noexcept;

  /// All that `run` does, but for `tokens` and `phase`; null where low-rank terms are added afterwards.
  const kernels::FusedLinearArgs* fused() const noexcept { return up_count_ == 0 ? &fused_ : nullptr; }

 private:
  const float* x_;
  int64_t x_stride_;
  kernels::FusedLinearArgs fused_;
  std::array<kernels::LinearProduct, kernels::FusedLinearArgs::kMost> ups_;  // [up_count_]: done after the others
  size_t up_count_ = 0;
};

}  // namespace hxq
