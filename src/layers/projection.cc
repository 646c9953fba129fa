#include "layers/projection.h"

#include <span>

namespace hxq {

namespace {

/// Calls for the rows of each phase that has any with what takes the arguments of all rows to those of these.
template <class Body>
void for_phases(const kernels::Batch& batch, const Body& body) {
  const auto run = [&](Phase phase, int64_t first, int64_t tokens) {
    if (tokens == 0) return;
    body([=](kernels::LinearArgs args) {
      args.x += first * args.x_stride;
      args.y += first * args.y_stride;
      args.tokens = tokens;
      args.phase = phase;
      return args;
    });
  };
  run(Phase::decode, 0, batch.decode_rows);
  run(Phase::prefill, batch.decode_rows, batch.rows - batch.decode_rows);
}

}  // namespace

void linear(const kernels::PreparedMatrix& weight, const kernels::LinearArgs& args, const kernels::Batch& batch,
            const kernels::Context& context) noexcept {
  for_phases(batch, [&](const auto& part_of) { kernels::linear(weight, part_of(args), context); });
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
  kernels::FusedLinearArgs part = fused_;
  if (batch.decode_rows > 0 && batch.decode_rows < batch.rows) {  // x of both phases together
    if (part.norm) kernels::rms_norm(*part.norm, context);
    if (part.activation) kernels::gated_activation(*part.activation, context);
    part.norm.reset();
    part.activation.reset();
  }
  for_phases(batch, [&](const auto& part_of) {
    for (size_t i = 0; i < part.count; ++i) part.products[i].args = part_of(fused_.products[i].args);
    kernels::fused_linear(part, context);
  });
  for (const auto& [weight, args] : std::span(ups_).first(up_count_)) linear(*weight, args, batch, context);
}

}  // namespace hxq
