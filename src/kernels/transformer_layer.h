#pragma once

#include "kernels/attention_step.h"
#include "kernels/fused_linear.h"

namespace hxq::kernels {

/// A layer of a transformer, where every segment of the batch has one row, to decode: attention and then a gated MLP,
/// of the norm of h each and added to h. `tokens` and `phase` of products are not looked at.
struct TransformerLayerArgs {
  FusedLinearArgs qkv;             ///< its norm's x is h; its products' y are the step's q, k and v
  AttentionStepArgs step;          ///< its y is o's x
  LinearProduct o;                 ///< its y is h
  FusedLinearArgs gate_up;         ///< its norm's x is h; gate and up, or both as one product
  GatedActivationArgs activation;  ///< its y is down's x
  LinearProduct down;              ///< its y is h
};

/// Whether the device did it, as one operation; if not, nothing is done. What the parts give each other is not written.
bool transformer_layer(const TransformerLayerArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
