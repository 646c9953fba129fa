#include "layers/gated_mlp.h"

#include "kernels/attention.h"

namespace hxq {

void GatedMlp::operator()(const kernels::RmsNormArgs& norm, float* y, bool accumulate, const kernels::Batch& batch,
                          WorkMemory work, const kernels::Context& context) const noexcept {
  const int64_t inner = down_.cols();
  const int64_t stride = gate_.rows();
  float* gate = work.take<float>(batch.rows * stride);  // later the product
  float* up = up_ ? work.take<float>(batch.rows * stride) : gate + inner;
  JointProjections ins(norm, norm.y, norm.dim);
  ins.add(gate_, gate, stride, batch.rows, work);
  if (up_) ins.add(*up_, up, stride);
  ins.run(batch, context);
  kernels::gated_activation({.gate = gate,
                             .up = up,
                             .x_stride = stride,
                             .y = gate,
                             .y_stride = stride,
                             .tokens = batch.rows,
                             .dim = inner,
                             .activation = activation_},
                            context);
  down_({.x = gate, .x_stride = stride, .y = y, .y_stride = down_.rows(), .accumulate = accumulate}, batch, context);
}

}  // namespace hxq
