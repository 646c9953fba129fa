#include "kernels/operations.h"

namespace hxq::kernels {

void linear(const PreparedMatrix& weight, const LinearArgs& args, const Context& context) noexcept {
  context.operations.linear(weight, args, context);
}

void gather_rows(const PreparedMatrix& weight, const int32_t* ids, int64_t count, float* out,
                 const Context& context) noexcept {
  context.operations.gather_rows(weight, ids, count, out, context);
}

void copy_rows(const CopyRowsArgs& args, const Context& context) noexcept {
  context.operations.copy_rows(args, context);
}

void rms_norm(const RmsNormArgs& args, const Context& context) noexcept { context.operations.rms_norm(args, context); }

void causal_conv1d_silu(const ConvArgs& args, const Context& context) noexcept {
  context.operations.causal_conv1d_silu(args, context);
}

void selective_scan(const ScanArgs& args, const Context& context) noexcept {
  context.operations.selective_scan(args, context);
}

void ssd(const SsdArgs& args, const Context& context) noexcept { context.operations.ssd(args, context); }

void rotary_table(const RotaryTableArgs& args, const Context& context) noexcept {
  context.operations.rotary_table(args, context);
}

void extend_cache(const ExtendCacheArgs& args, const Context& context) noexcept {
  context.operations.extend_cache(args, context);
}

void attention(const AttentionArgs& args, const Context& context) noexcept {
  context.operations.attention(args, context);
}

void gated_activation(const GatedActivationArgs& args, const Context& context) noexcept {
  context.operations.gated_activation(args, context);
}

}  // namespace hxq::kernels
