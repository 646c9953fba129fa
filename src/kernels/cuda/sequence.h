#pragma once

#include "kernels/cuda/types.h"

/// Operations along the sequences of state-space models. States are float whatever the activations are.
namespace hxq::cuda {

/// y[t, :] = v / sqrt(mean(v^2) + eps) * weight with v = x[t, :], or x[t, :] * silu(z[t, :]) where z is given. With
/// several groups each row is cut into as many equal parts, and each part has a mean of its own. y may be x.
struct RmsNormArgs {
  Input x;                        // [tokens, dim]
  Input z = {};                   // [tokens, dim], or null: no gate
  const float* weight = nullptr;  // [dim]
  Output y;                       // [tokens, dim]
  int64_t tokens = 0;
  int64_t dim = 0;
  int64_t groups = 1;  ///< a divisor of dim
  float eps = 0;
  Output residual = {};  // [tokens, dim], or null: x is added to it, and the sum takes the place of x
};
Status rms_norm(const RmsNormArgs& args, Stream stream) noexcept;

/// to[i, :] = from[row[i], :], or from[i, :] where row is null.
struct CopyRowsArgs {
  Input from;                    // [.., cols]
  const int32_t* row = nullptr;  // [rows] in device memory, or null
  Output to;                     // [rows, cols]; does not overlap from
  int64_t rows = 0;
  int64_t cols = 0;
};
Status copy_rows(const CopyRowsArgs& args, Stream stream) noexcept;

/// Depthwise causal convolution, then SiLU (Gu & Dao 2023, arXiv 2312.00752):
///     y[t, c] = silu(bias[c] + sum_j weight[j, c] * x[t - width + 1 + j, c])
/// Inputs before a segment come from its sequence's state, which is then advanced past the segment.
struct ConvArgs {
  Batch batch = {};
  Input x = {};   // [total_rows, channels]
  Output y = {};  // [total_rows, channels]; not x
  int64_t channels = 0;
  int64_t width = 0;              ///< taps of the filter, 1 to kMaxConvWidth
  const float* weight = nullptr;  // [width, channels]
  const float* bias = nullptr;    // [channels], or null
  void* const* states = nullptr;  // [batch.count]: float [state_rows, channels] of each, oldest first
  int64_t state_rows = 0;         ///< width - 1 or more
};
inline constexpr int64_t kMaxConvWidth = 16;
Status causal_conv1d_silu(const ConvArgs& args, Stream stream) noexcept;

/// Selective scan of Mamba-1 (arXiv 2312.00752, section 3.2), with gate:
///     delta   = softplus(dt[t, c] + dt_bias[c])
///     h[n, c] = exp(delta * A[n, c]) * h[n, c] + delta * B[t, n] * u[t, c]
///     y[t, c] = (sum_n h[n, c] * C[t, n] + D[c] * u[t, c]) * silu(z[t, c])
struct ScanArgs {
  Batch batch = {};
  Input u = {};                    // [total_rows, channels]
  Input dt = {};                   // [total_rows, channels], before bias and softplus
  const float* dt_bias = nullptr;  // [channels], or null
  Input b = {}, c = {};            // [total_rows, state_size]
  Input z = {};                    // [total_rows, channels]
  const float* a = nullptr;        // [state_size, channels]: -exp(A_log), transposed
  const float* d = nullptr;        // [channels]
  void* const* states = nullptr;   // [batch.count]: float [state_size, channels] of each, read and advanced
  Output y = {};                   // [total_rows, channels]; may be u
  int64_t channels = 0;
  int64_t state_size = 0;  ///< 1 to kMaxScanState
};
inline constexpr int64_t kMaxScanState = 64;
Status selective_scan(const ScanArgs& args, Stream stream) noexcept;

/// State-space duality, the recurrence of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), with gate. Head h belongs to group
/// g = h / (heads / groups):
///     delta   = clamp(softplus(dt[t, h] + dt_bias[h]), dt_min, dt_max)
///     s[n, p] = exp(delta * A[h]) * s[n, p] + delta * B[t, g, n] * x[t, h, p]
///     y[t, h, p] = (sum_n s[n, p] * C[t, g, n] + D[h] * x[t, h, p]) * silu(z[t, h, p])
/// Segments of many tokens go through chunks by tensor cores where there is room for them.
struct SsdArgs {
  Batch batch;
  Input x;                         // [total_rows, heads * head_dim]
  Input b, c;                      // [total_rows, groups * state_size]
  Input dt;                        // [total_rows, heads], before bias and softplus
  const float* dt_bias = nullptr;  // [heads]
  float dt_min = 0;
  float dt_max = 0;
  const float* a = nullptr;       // [heads]: -exp(A_log)
  const float* d = nullptr;       // [heads]
  Input z;                        // [total_rows, heads * head_dim], or null: no gate
  void* const* states = nullptr;  // [batch.count]: float [heads, state_size, head_dim] of each, read and advanced
  Output y;                       // [total_rows, heads * head_dim]; not x
  int64_t heads = 0;              ///< a multiple of groups
  int64_t head_dim = 0;
  int64_t groups = 0;
  int64_t state_size = 0;    ///< 1 to kMaxSsdState
  Workspace workspace = {};  ///< `ssd_workspace`
};
inline constexpr int64_t kMaxSsdState = 256;
size_t ssd_workspace(const SsdArgs& args) noexcept;
Status ssd(const SsdArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
