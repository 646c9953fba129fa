#pragma once

#include "kernels/fused_linear.h"
#include "kernels/mamba_step.h"

namespace hxq::kernels {

/// A layer of Mamba-1, where every segment of the batch has one row, to decode: the norm of h, in_proj, what
/// `mamba_step` does, and out_proj, which is added to h.
struct MambaLayerArgs {
  RmsNormArgs norm;        ///< its x is h; its y is in_proj's x
  LinearProduct in_proj;   ///< its y is the step's x and z
  MambaStepArgs step;      ///< its y is out_proj's x
  LinearProduct out_proj;  ///< its y is h
};

/// Whether the device did it, as one operation; if not, nothing is done. What the parts give each other is not written.
bool mamba_layer(const MambaLayerArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
