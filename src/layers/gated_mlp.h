#pragma once

#include <optional>

#include "desc/activation.h"
#include "kernels/attention.h"
#include "layers/projection.h"

namespace hxq {

/// down(activation(gate(x)) * up(x)), where gate and up may be one matrix, gate first.
class GatedMlp {
 public:
  GatedMlp(AdaptedProjection gate, std::optional<Projection> up, Projection down, Activation activation)
      : gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)), activation_(activation) {}

  /// The operations that it is made of; what they give each other is in work memory.
  struct Parts {
    JointProjections gate_up;
    kernels::GatedActivationArgs activation;
    kernels::LinearProduct down;

    void run(const kernels::Batch& batch, const kernels::Context& context) const noexcept;
  };
  /// y = mlp(x) (+ y), with x what the norm gives: [rows, hidden]. y: [rows, hidden], contiguous; may be the norm's x.
  Parts parts(const kernels::RmsNormArgs& norm, float* y, bool accumulate, const kernels::Batch& batch,
              WorkMemory work) const noexcept;
  void operator()(const kernels::RmsNormArgs& norm, float* y, bool accumulate, const kernels::Batch& batch,
                  WorkMemory work, const kernels::Context& context) const noexcept {
    parts(norm, y, accumulate, batch, work).run(batch, context);
  }

 private:
  AdaptedProjection gate_;        // [inner, hidden], or [2 * inner, hidden]: gate, then up
  std::optional<Projection> up_;  // [inner, hidden]
  Projection down_;               // [hidden, inner]
  Activation activation_;
};

}  // namespace hxq
