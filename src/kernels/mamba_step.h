#pragma once

#include "kernels/kernels.h"

namespace hxq::kernels {

/// What Mamba-1 does between its projections, where every segment of the batch has one row, to decode:
///     u         = causal_conv1d_silu(x)
///     dt, b, c  = x_proj u
///     y         = selective_scan(u, dt_proj dt, b, c, z)
struct MambaStepArgs {
  ConvArgs conv;                            ///< its y is not written
  const PreparedMatrix* x_proj = nullptr;   // [dt_rank + 2 * state_size, channels]
  const PreparedMatrix* dt_proj = nullptr;  // [channels, dt_rank]
  ScanArgs scan;                            ///< its u, dt, b and c are not read; y is not conv's x
};

/// Whether the device did it, as one operation; if not, nothing is done.
bool mamba_step(const MambaStepArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
