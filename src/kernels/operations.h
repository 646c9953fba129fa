#pragma once

#include "kernels/attention.h"
#include "kernels/attention_step.h"
#include "kernels/fused_linear.h"
#include "kernels/kernels.h"
#include "kernels/mamba_layer.h"
#include "kernels/mamba_step.h"
#include "kernels/most_likely.h"
#include "kernels/ssd.h"
#include "kernels/transformer_layer.h"

namespace hxq::kernels {

/// What a device can do: the functions behind those of kernels.h, attention.h, ssd.h and most_likely.h, under the same
/// rules. A table, so that a shared library can provide one. Those that fuse others are optional: null, or false where
/// the device does not take these arguments, and then the others are called.
struct Operations {
  void (*linear)(const PreparedMatrix& weight, const LinearArgs& args, const Context& context) noexcept;
  void (*gather_rows)(const PreparedMatrix& weight, const int32_t* ids, int64_t count, float* out,
                      const Context& context) noexcept;
  void (*copy_rows)(const CopyRowsArgs& args, const Context& context) noexcept;
  void (*rms_norm)(const RmsNormArgs& args, const Context& context) noexcept;
  void (*causal_conv1d_silu)(const ConvArgs& args, const Context& context) noexcept;
  void (*selective_scan)(const ScanArgs& args, const Context& context) noexcept;
  void (*ssd)(const SsdArgs& args, const Context& context) noexcept;
  void (*rotary_table)(const RotaryTableArgs& args, const Context& context) noexcept;
  void (*extend_cache)(const ExtendCacheArgs& args, const Context& context) noexcept;
  void (*attention)(const AttentionArgs& args, const Context& context) noexcept;
  void (*gated_activation)(const GatedActivationArgs& args, const Context& context) noexcept;
  void (*most_likely)(const MostLikelyArgs& args, const Context& context) noexcept;
  bool (*attention_step)(const AttentionStepArgs& args, const Context& context) noexcept = nullptr;
  bool (*mamba_step)(const MambaStepArgs& args, const Context& context) noexcept = nullptr;
  bool (*mamba_layer)(const MambaLayerArgs& args, const Context& context) noexcept = nullptr;
  bool (*transformer_layer)(const TransformerLayerArgs& args, const Context& context) noexcept = nullptr;
  bool (*fused_linear)(const FusedLinearArgs& args, const Context& context) noexcept = nullptr;
};

}  // namespace hxq::kernels
