#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/mamba_step.h"

namespace hxq::cuda {

/// A layer of Mamba-1 for one token of each of several sequences:
///     x, z = in_proj (rms_norm(h)) (+ in_bias)
///     y    = what `mamba_step` makes of x and z
///     h   += out_proj y (+ out_bias)
struct MambaLayer {
  const float* norm_weight = nullptr;  // [hidden]
  CodebookWeight in_proj = {};         // [2 * channels, hidden]
  const float* in_bias = nullptr;      // [2 * channels], or null
  MambaStepArgs step = {};             ///< batch, conv.x, scan.z and scan.y, too, are not looked at
  CodebookWeight out_proj = {};        // [hidden, channels]
  const float* out_bias = nullptr;     // [hidden], or null
};

/// Adjacent layers of one shape.
struct MambaLayersArgs {
  Batch batch;  ///< segments have one row or none
  Output h;     // [rows, hidden]
  float eps = 0;
  Precision precision = Precision::exact;
  const MambaLayer* layers = nullptr;  // [count]
  int64_t count = 0;
  /// kMambaExchangeBytes of device memory, zeros before its first use, which one stream alone uses; or null. With it
  /// one or two sequences go through layers that all of the GPU works on together.
  void* exchange = nullptr;
};

/// Whether `mamba_layers` takes these arguments on the current device: few sequences (one: only with `exchange`), and
/// layers that fit. States must be aligned to 16 bytes.
bool supports_mamba_layers(const MambaLayersArgs& args) noexcept;
/// As one kernel for up to kMostMambaLayers of them. Levels and x are rounded to 11 bits (TF32), x to 22 for `exact`;
/// of one or two sequences that all of the GPU works on together all is float.
Status mamba_layers(const MambaLayersArgs& args, Stream stream) noexcept;
inline constexpr int kMostMambaLayers = 64;
inline constexpr size_t kMambaExchangeBytes = 82048;

}  // namespace hxq::cuda
