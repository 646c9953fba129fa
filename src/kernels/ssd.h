#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace hxq::kernels {

/// State-space duality, the recurrence of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), with gate. Head h belongs to group
/// g = h / (heads / groups):
///     delta   = clamp(softplus(dt[t, h] + dt_bias[h]), dt_min, dt_max)
///     s[n, p] = exp(delta * A[h]) * s[n, p] + delta * B[t, g, n] * x[t, h, p]
///     y[t, h, p] = (sum_n s[n, p] * C[t, g, n] + D[h] * x[t, h, p]) * silu(z[t, h, p])
/// Single tokens step through it; many go chunk by chunk in its matrix form (section 6 of the paper). `state` is s of
/// all heads, read and advanced.
struct SsdArgs {
  const float* x = nullptr;  // [tokens, heads, head_dim], rows xbc_stride apart
  const float* b = nullptr;  // [tokens, groups, state_size], rows xbc_stride apart
  const float* c = nullptr;  // [tokens, groups, state_size], rows xbc_stride apart
  int64_t xbc_stride = 0;
  const float* dt = nullptr;  // [tokens, heads], rows dt_stride apart, before bias and softplus
  int64_t dt_stride = 0;
  const float* dt_bias = nullptr;  // [heads]
  float dt_min = 0;
  float dt_max = 0;
  const float* a = nullptr;  // [heads]: -exp(A_log)
  const float* d = nullptr;  // [heads]
  const float* z = nullptr;  // [tokens, heads, head_dim], rows z_stride apart
  int64_t z_stride = 0;
  float* state = nullptr;  // [heads, state_size, head_dim]
  float* y = nullptr;      // [tokens, heads, head_dim], contiguous; not x
  int64_t tokens = 0;
  int64_t heads = 0;  ///< a multiple of groups
  int64_t head_dim = 0;
  int64_t groups = 0;
  int64_t state_size = 0;
};
void ssd(const SsdArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
