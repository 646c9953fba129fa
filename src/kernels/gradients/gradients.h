#pragma once

#include <cstdint>

#include "kernels/cpu_matrix.h"
#include "kernels/ssd.h"

/// Reverse-mode gradients of the operations of kernels.h and ssd.h, with the same rules: called by every thread of the
/// team, finished for all of them on return, and independent of the number of threads. Names: `g` is dL/dy, `dv` is
/// dL/dv. Outputs are overwritten unless said otherwise; the ones that may be null are then not computed.
namespace hxq::kernels {

/// dx = g W, then the transpose of the input's transform: the gradient of `linear` with respect to x.
struct LinearTransposedArgs {
  const float* g = nullptr;  // [tokens, rows], contiguous
  float* dx = nullptr;       // [tokens, cols], contiguous
  int64_t tokens = 0;
};
void linear_transposed(const CpuMatrix& weight, const LinearTransposedArgs& args, const CpuContext& context) noexcept;

/// Of `causal_conv1d_silu`, for a sequence that starts at x[0]: what came before is zero.
struct ConvGradientArgs {
  const float* x = nullptr;  // [tokens, channels], rows x_stride apart
  int64_t x_stride = 0;
  const float* g = nullptr;  // [tokens, channels], contiguous
  int64_t tokens = 0;
  int64_t channels = 0;
  int64_t width = 0;
  const float* weight = nullptr;  // [width, channels]
  const float* bias = nullptr;    // [channels], or null
  float* dx = nullptr;            // [tokens, channels], contiguous
  float* dweight = nullptr;       // [width, channels], added to
  float* dbias = nullptr;         // [channels], added to
};
void causal_conv1d_silu_gradient(const ConvGradientArgs& args, const CpuContext& context) noexcept;

/// Of `selective_scan`, for a sequence that starts from a state of zeros. The states are computed again, a run of
/// tokens at a time (checkpointing: Gu & Dao 2023, arXiv 2312.00752, section 3.3.2), so memory stays small.
struct ScanGradientArgs {
  ScanArgs forward;           ///< as given to `selective_scan`; the batch is one segment; y and state are not used
  const float* g = nullptr;   // [tokens, channels], contiguous
  float* du = nullptr;        // [tokens, channels]
  float* ddt = nullptr;       // [tokens, channels]
  float* dz = nullptr;        // [tokens, channels]
  float* db = nullptr;        // [tokens, state_size]
  float* dc = nullptr;        // [tokens, state_size]
  float* da = nullptr;        // [state_size, channels], added to
  float* dd = nullptr;        // [channels], added to
  float* ddt_bias = nullptr;  // [channels], added to
};
void selective_scan_gradient(const ScanGradientArgs& args, const CpuContext& context) noexcept;

/// Of `ssd`, for a sequence that starts from a state of zeros; states are computed again as above. Where delta is
/// clamped, no gradient passes to dt.
struct SsdGradientArgs {
  SsdArgs forward;            ///< as given to `ssd`; the batch is one segment; y and state are not used
  const float* g = nullptr;   // [tokens, heads, head_dim], contiguous
  float* dx = nullptr;        // [tokens, heads, head_dim]
  float* ddt = nullptr;       // [tokens, heads]
  float* dz = nullptr;        // [tokens, heads, head_dim]
  float* db = nullptr;        // [tokens, groups, state_size]
  float* dc = nullptr;        // [tokens, groups, state_size]
  float* da = nullptr;        // [heads], added to
  float* dd = nullptr;        // [heads], added to
  float* ddt_bias = nullptr;  // [heads], added to
};
void ssd_gradient(const SsdGradientArgs& args, const CpuContext& context) noexcept;

}  // namespace hxq::kernels
