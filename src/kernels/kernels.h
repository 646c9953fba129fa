#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "hxq/tensor.h"
#include "kernels/team.h"

/// Operations of the CPU runtime. Every function here is called by all threads of a team with the same arguments and
/// ends with a barrier, so its result is complete for all of them; results do not depend on the number of threads.
/// Arguments were checked when the model was opened: nothing here throws.
namespace hxq::kernels {

namespace cpu {
class PreparedCodebook;
}

/// Instruction sets that have kernels of their own, slowest first.
enum class Target : uint8_t { scalar, avx2, avx512 };

std::string_view name_of(Target target) noexcept;

/// The targets this processor can run, slowest first; always has `scalar`.
std::vector<Target> supported_targets();

/// Memory that operations share across calls. One per running model; grows on demand and is then reused.
class Scratch;

struct Context {
  Team team;
  Target target;     ///< one of supported_targets()
  Scratch& scratch;  ///< the same object for the whole team
};

/// A dense matrix in the source's own type (F32, F16 or BF16), row-major, possibly unaligned.
struct DenseMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::f32;
  const std::byte* data = nullptr;
};

/// x: [tokens, cols] with rows x_stride floats apart; y: [tokens, rows] with rows y_stride floats apart.
struct LinearArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  int64_t tokens = 0;
  const float* bias = nullptr;  ///< [rows], or null
  bool accumulate = false;      ///< add to y instead of overwriting it
};

/// y = x W^T (+ bias) (+ y). Weights are used exactly as they decode (outliers as the codebook's weight plus a
/// difference, rounded to float), sums are in float. So is x, but on AVX-512 with a
/// codebook of integer levels (LookupPlanes::integer_levels) it is rounded: for up to 3 tokens to 16 or 24 bits below
/// the largest |x| of its token, from 128 on to 11 bits below the largest of 64 columns. In energy the error is at most
/// -52 dB of |x|^2 times the mean square of the weights, where no level is more than 8 times the root of that. Values
/// of x below 2^-100 may then count as 0. No tokens: nothing is done.
void linear(const cpu::PreparedCodebook& weight, const LinearArgs& args, const Context& context) noexcept;
void linear(const DenseMatrix& weight, const LinearArgs& args, const Context& context) noexcept;

/// out[i, :] = row ids[i] of the matrix, decoded to float. ids are in range.
void gather_rows(const cpu::PreparedCodebook& weight, const int32_t* ids, int64_t count, float* out,
                 const Context& context) noexcept;
void gather_rows(const DenseMatrix& weight, const int32_t* ids, int64_t count, float* out,
                 const Context& context) noexcept;

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
/// Inputs before the first token come from `state`, which is then advanced past the last token.
struct ConvArgs {
  const float* x = nullptr;  // [tokens, channels], rows x_stride apart
  int64_t x_stride = 0;
  float* y = nullptr;  // [tokens, channels], contiguous; not x
  int64_t tokens = 0;
  int64_t channels = 0;
  int64_t width = 0;              ///< taps of the filter, >= 1
  const float* weight = nullptr;  // [width, channels]: the transpose of the checkpoint's [channels, 1, width]
  const float* bias = nullptr;    // [channels], or null
  float* state = nullptr;         // [width - 1, channels], the inputs before x[0], oldest first
};
void causal_conv1d_silu(const ConvArgs& args, const Context& context) noexcept;

/// Selective scan of Mamba-1 (arXiv 2312.00752, section 3.2), with gate:
///     delta   = softplus(dt[t, c] + dt_bias[c])
///     h[n, c] = exp(delta * A[n, c]) * h[n, c] + delta * B[t, n] * u[t, c]
///     y[t, c] = (sum_n h[n, c] * C[t, n] + D[c] * u[t, c]) * silu(z[t, c])
/// `state` is h, read and advanced.
struct ScanArgs {
  const float* u = nullptr;        // [tokens, channels], contiguous
  const float* dt = nullptr;       // [tokens, channels], contiguous, before bias and softplus
  const float* dt_bias = nullptr;  // [channels], or null
  const float* b = nullptr;        // [tokens, state_size], rows bc_stride apart
  const float* c = nullptr;        // [tokens, state_size], rows bc_stride apart
  int64_t bc_stride = 0;
  const float* z = nullptr;  // [tokens, channels], rows z_stride apart
  int64_t z_stride = 0;
  const float* a = nullptr;  // [state_size, channels]: -exp(A_log), transposed
  const float* d = nullptr;  // [channels]
  float* state = nullptr;    // [state_size, channels]
  float* y = nullptr;        // [tokens, channels], contiguous; may be u
  int64_t tokens = 0;
  int64_t channels = 0;
  int64_t state_size = 0;
};
void selective_scan(const ScanArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
