#pragma once

#include <cstdint>

#include "kernels/batch.h"
#include "kernels/context.h"
#include "kernels/prepared_matrix.h"

/// Operations of a model's layers. Each goes through the table of the context's device (`Operations`); pointers in
/// arguments are to device memory. On the CPU every function is called by all threads of a team with the same arguments
/// and ends with a barrier, so its result is complete for all of them; results do not depend on the number of threads.
/// What a row gives depends on no other sequence's rows. Arguments were checked when the model was opened, and memory
/// was reserved: nothing here fails.
namespace hxq::kernels {

/// x: [tokens, cols] with rows x_stride floats apart; y: [tokens, rows] with rows y_stride floats apart.
struct LinearArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  int64_t tokens = 0;
  Phase phase = Phase::prefill;  ///< of all tokens
  const float* bias = nullptr;   ///< [rows], or null
  bool accumulate = false;       ///< add to y instead of overwriting it
};

/// y = x W^T (+ bias) (+ y). Weights are used exactly as they decode (outliers as the codebook's weight plus a
/// difference, rounded to float), sums are in float; activation_quantization.h says where x is rounded, and which
/// weights are. The result of a token is that of its phase, to the last bit, whatever other tokens are in the call. A
/// decode call reads the weights once for any number of tokens. No tokens: nothing is done.
void linear(const PreparedMatrix& weight, const LinearArgs& args, const Context& context) noexcept;

/// out[i, :] = row ids[i] of the matrix, decoded to float. ids are in range.
void gather_rows(const PreparedMatrix& weight, const int32_t* ids, int64_t count, float* out,
                 const Context& context) noexcept;

/// to[i, :] = from[row[i], :], or from[i, :] where row is null.
struct CopyRowsArgs {
  const float* from = nullptr;  // rows from_stride apart
  int64_t from_stride = 0;
  const int32_t* row = nullptr;  // [rows], or null
  float* to = nullptr;           // [rows, cols], rows to_stride apart; does not overlap from
  int64_t to_stride = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};
void copy_rows(const CopyRowsArgs& args, const Context& context) noexcept;

/// y[t, :] = x[t, :] / sqrt(mean(x[t, :]^2) + eps) * weight. x, y: [tokens, dim], may be the same. With several groups
/// each row is cut into as many equal parts, and each part has a mean of its own.
struct RmsNormArgs {
  const float* x = nullptr;
  const float* weight = nullptr;  // [dim]
  float* y = nullptr;
  int64_t tokens = 0;
  int64_t dim = 0;
  int64_t groups = 1;  ///< a divisor of dim
  float eps = 0;
};
void rms_norm(const RmsNormArgs& args, const Context& context) noexcept;

/// Depthwise causal convolution along tokens, then SiLU, as in Mamba (Gu & Dao 2023, arXiv 2312.00752):
///     y[t, c] = silu(bias[c] + sum_j weight[j, c] * x[t - width + 1 + j, c])
/// Inputs before a segment's first token come from its state, which is then advanced past the last token.
struct ConvArgs {
  const float* x = nullptr;  // [rows, channels], rows x_stride apart
  int64_t x_stride = 0;
  float* y = nullptr;  // [rows, channels], contiguous; not x
  Batch batch = {};
  int64_t channels = 0;
  int64_t width = 0;              ///< taps of the filter, >= 1
  const float* weight = nullptr;  // [width, channels]: the transpose of the checkpoint's [channels, 1, width]
  const float* bias = nullptr;    // [channels], or null
  /// [segments]: float [state_rows, channels] of each, the inputs before its first, oldest first.
  void* const* state = nullptr;
  int64_t state_rows = 0;  ///< width - 1 or more
};
void causal_conv1d_silu(const ConvArgs& args, const Context& context) noexcept;

/// Selective scan of Mamba-1 (arXiv 2312.00752, section 3.2), with gate:
///     delta   = softplus(dt[t, c] + dt_bias[c])
///     h[n, c] = exp(delta * A[n, c]) * h[n, c] + delta * B[t, n] * u[t, c]
///     y[t, c] = (sum_n h[n, c] * C[t, n] + D[c] * u[t, c]) * silu(z[t, c])
/// A segment's state is h, read and advanced.
struct ScanArgs {
  const float* u = nullptr;        // [rows, channels], contiguous
  const float* dt = nullptr;       // [rows, channels], contiguous, before bias and softplus
  const float* dt_bias = nullptr;  // [channels], or null
  const float* b = nullptr;        // [rows, state_size], rows bc_stride apart
  const float* c = nullptr;        // [rows, state_size], rows bc_stride apart
  int64_t bc_stride = 0;
  const float* z = nullptr;  // [rows, channels], rows z_stride apart
  int64_t z_stride = 0;
  const float* a = nullptr;      // [state_size, channels]: -exp(A_log), transposed
  const float* d = nullptr;      // [channels]
  void* const* state = nullptr;  // [segments]: float [state_size, channels] of each
  float* y = nullptr;            // [rows, channels], contiguous; may be u
  Batch batch = {};
  int64_t channels = 0;
  int64_t state_size = 0;
};
void selective_scan(const ScanArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
