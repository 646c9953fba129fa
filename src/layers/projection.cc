#include "layers/projection.h"

#include <span>

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

void JointProjections::add(const kernels::LinearProduct& product) noexcept {
  kernels::LinearProduct& added = fused_.products[fused_.count++];
  added = product;
  added.args.x = x_;
  added.args.x_stride = x_stride_;
}

void JointProjections::add(const Projection& projection, float* y, int64_t y_stride, bool accumulate) noexcept {
  add(projection.with({.y = y, .y_stride = y_stride, .accumulate = accumulate}));
}

void JointProjections::add(const AdaptedProjection& projection, float* y, int64_t y_stride, int64_t rows,
                           WorkMemory& work) noexcept {
  add(projection.shared_, y, y_stride);
  if (!projection.down_) return;
  const int64_t rank = projection.down_->rows();
  float* low = work.take<float>(rows * rank);
  add(*projection.down_, low, rank);
  ups_[up_count_++] =
      projection.up_->with({.x = low, .x_stride = rank, .y = y, .y_stride = y_stride, .accumulate = true});
}

void JointProjections::run(const kernels::Batch& batch, const kernels::Context& context) const noexcept {
  if (batch.decode_rows == batch.rows) {
    kernels::FusedLinearArgs all = fused_;
    for (kernels::LinearProduct& product : all.products) {
      product.args.tokens = batch.rows;
      product.args.phase = Phase::decode;
    }
    kernels::fused_linear(all, context);
  } else {
    if (fused_.norm) kernels::rms_norm(*fused_.norm, context);
    for (const auto& [weight, args] : std::span(fused_.products).first(fused_.count)) {
      linear(*weight, args, batch, context);
    }
  }
  for (const auto& [weight, args] : std::span(ups_).first(up_count_)) linear(*weight, args, batch, context);
}

}  // namespace hxq
