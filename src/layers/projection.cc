#include "layers/projection.h"

namespace hxq {

void linear(const kernels::PreparedMatrix& weight, const kernels::LinearArgs& args, const kernels::Batch& batch,
            const kernels::Context& context) noexcept {
  kernels::LinearArgs part = args;
  part.phase = Phase::decode;
  part.tokens = batch.decode_rows;
  if (part.tokens > 0) kernels::linear(weight, part, context);
  part.phase = Phase::prefill;
  part.tokens = batch.rows - batch.decode_rows;
  part.x += batch.decode_rows * part.x_stride;
  part.y += batch.decode_rows * part.y_stride;
  if (part.tokens > 0) kernels::linear(weight, part, context);
}

AdaptedProjection::AdaptedProjection(const WeightSource& source, const AdaptedWeight& weight, WeightId bias)
    : shared_(source, weight.weight, bias) {
  if (weight.down == kNoWeight) return;
  down_.emplace(source, weight.down);
  up_.emplace(source, weight.up);
}

void AdaptedProjection::operator()(const kernels::LinearArgs& args, const kernels::Batch& batch, WorkMemory work,
                                   const kernels::Context& context) const noexcept {
  shared_(args, batch, context);
  if (!down_) return;
  const int64_t rank = down_->rows();
  float* low = work.take<float>(batch.rows * rank);
  (*down_)({.x = args.x, .x_stride = args.x_stride, .y = low, .y_stride = rank}, batch, context);
  (*up_)({.x = low, .x_stride = rank, .y = args.y, .y_stride = args.y_stride, .accumulate = true}, batch, context);
}

}  // namespace hxq
