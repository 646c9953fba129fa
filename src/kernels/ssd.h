#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace hxq::kernels {

/// State-space duality, the recurrence of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), with gate. Head h belongs to group
/// g = h / (heads / groups):
///     delta   = clamp(softplus(dt[t, h] + dt_bias[h]), dt_min, dt_max)
///     s[n, p] = exp(delta * A[h]) * s[n, p] + delta * B[t, g, n] * x[t, h, p]
///     y[t, h, p] = (sum_n s[n, p] * C[t, g, n] + D[h] * x[t, h, p]) * silu(z[t, h, p])
/// A segment's state is s of all heads, read and advanced. A token's result does not depend on how its sequence is cut
/// into calls: the recurrence is run as it stands, not in the matrix form of the paper's section 6, whose chunks begin
/// where calls do.
struct SsdArgs {
  const float* x = nullptr;  // [rows, heads, head_dim], rows xbc_stride apart
  const float* b = nullptr;  // [rows, groups, state_size], rows xbc_stride apart
  const float* c = nullptr;  // [rows, groups, state_size], rows xbc_stride apart
  int64_t xbc_stride = 0;
  const float* dt = nullptr;  // [rows, heads], rows dt_stride apart, before bias and softplus
  int64_t dt_stride = 0;
  const float* dt_bias = nullptr;  // [heads]
  float dt_min = 0;
  float dt_max = 0;
  const float* a = nullptr;  // [heads]: -exp(A_log)
  const float* d = nullptr;  // [heads]
  const float* z = nullptr;  // [rows, heads, head_dim], rows z_stride apart
  int64_t z_stride = 0;
  void* const* state = nullptr;  // [segments]: float [heads, state_size, head_dim] of each
  float* y = nullptr;            // [rows, heads, head_dim], contiguous; not x
  Batch batch = {};
  int64_t heads = 0;  ///< a multiple of groups
  int64_t head_dim = 0;
  int64_t groups = 0;
  int64_t state_size = 0;
};
void ssd(const SsdArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
