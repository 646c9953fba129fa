#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {

/// One token of each sequence between the projections of a Mamba-1 layer, in one kernel:
///     u         = causal_conv1d_silu(x)
///     dt, b, c  = x_proj u
///     y         = selective_scan(u, dt_proj dt, b, c, z)
/// Everything is float; both states are advanced.
struct MambaStepArgs {
  Batch batch;             ///< segments have one row or none
  ConvArgs conv;           ///< its batch and y are not looked at
  CodebookWeight x_proj;   // [dt_proj.cols + 2 * state_size, channels]
  CodebookWeight dt_proj;  // [channels, dt_rank]
  ScanArgs scan;           ///< its batch, u, dt, b and c are not looked at; y is not conv's x
};

/// Whether `mamba_step` takes these arguments on the current device: few sequences, and matrices that fit.
bool supports_mamba_step(const MambaStepArgs& args) noexcept;
Status mamba_step(const MambaStepArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
