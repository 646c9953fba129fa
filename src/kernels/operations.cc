#include "kernels/operations.h"

#include <span>

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

void most_likely(const MostLikelyArgs& args, const Context& context) noexcept {
  context.operations.most_likely(args, context);
}

bool mamba_step(const MambaStepArgs& args, const Context& context) noexcept {
  return context.operations.mamba_step && context.operations.mamba_step(args, context);
}

bool mamba_layer(const MambaLayerArgs& args, const Context& context) noexcept {
  return context.operations.mamba_layer && context.operations.mamba_layer(args, context);
}

bool transformer_layer(const TransformerLayerArgs& args, const Context& context) noexcept {
  return context.operations.transformer_layer && context.operations.transformer_layer(args, context);
}

bool attention_step(const AttentionStepArgs& args, const Context& context) noexcept {
  return context.operations.attention_step && context.operations.attention_step(args, context);
}

void fused_linear(const FusedLinearArgs& args, const Context& context) noexcept {
  if (context.operations.fused_linear && context.operations.fused_linear(args, context)) return;
  if (args.norm) rms_norm(*args.norm, context);
  if (args.activation) gated_activation(*args.activation, context);
  for (const LinearProduct& product : std::span(args.products).first(args.count)) {
    linear(*product.weight, product.args, context);
  }
}

}  // namespace hxq::kernels
