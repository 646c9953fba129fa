#include "layers/gated_mlp.h"

namespace hxq {

GatedMlp::Parts GatedMlp::parts(const kernels::RmsNormArgs& norm, float* y, bool accumulate,
                                const kernels::Batch& batch, WorkMemory work) const noexcept {
  const int64_t inner = down_.cols();
  const int64_t stride = gate_.rows();
  float* gate = work.take<float>(batch.rows * stride);  // later the product
  float* up = up_ ? work.take<float>(batch.rows * stride) : gate + inner;
  Parts parts{
      .gate_up = {norm, norm.y, norm.dim},
      .activation = {.gate = gate,
                     .up = up,
                     .x_stride = stride,
                     .y = gate,
                     .y_stride = stride,
                     .tokens = batch.rows,
                     .dim = inner,
                     .activation = activation_},
      .down = down_.with({.x = gate, .x_stride = stride, .y = y, .y_stride = down_.rows(), .accumulate = accumulate})};
  parts.gate_up.add(gate_, gate, stride, batch.rows, work);
  if (up_) parts.gate_up.add(*up_, up, stride);
  return parts;
}

void GatedMlp::Parts::run(const kernels::Batch& batch, const kernels::Context& context) const noexcept {
  gate_up.run(batch, context);
  JointProjections last(activation);
  last.add(down);
  last.run(batch, context);
}

}  // namespace hxq
