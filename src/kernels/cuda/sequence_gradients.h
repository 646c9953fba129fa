#pragma once

#include "kernels/cuda/types.h"

/// Gradients of operations of sequence.h over `batch` sequences of `tokens` rows each that start from nothing: `g` is
/// dL/dy, `dv` is dL/dv. All are float; what has no stride is contiguous. Sums over tokens and sequences are made in no
/// fixed order.
namespace hxq::cuda {

/// Of `causal_conv1d_silu`.
struct ConvGradientArgs {
  int32_t batch = 0;
  int32_t tokens = 0;
  int64_t channels = 0;
  int64_t width = 0;         ///< 1 to kMaxConvWidth
  const float* x = nullptr;  // [batch, tokens, channels], rows x_stride apart
  int64_t x_stride = 0;
  const float* weight = nullptr;  // [channels, width]
  const float* bias = nullptr;    // [channels], or null
  const float* g = nullptr;       // [batch, tokens, channels]
  float* dx = nullptr;            // [batch, tokens, channels]
  float* dweight = nullptr;       // [channels, width]
  float* dbias = nullptr;         // [channels]
};
Status causal_conv1d_silu_gradient(const ConvGradientArgs& args, Stream stream) noexcept;

/// Of `selective_scan`. Runs of tokens are computed side by side: states from the front and their gradients from the
/// back are first made of zeros in every run, then joined; then each run computes its states again.
struct ScanGradientArgs {
  int32_t batch = 0;
  int32_t tokens = 0;
  int64_t channels = 0;
  int64_t state_size = 0;          ///< 1 to kMaxScanState
  const float* u = nullptr;        // [batch, tokens, channels]
  const float* dt = nullptr;       // [batch, tokens, channels]
  const float* dt_bias = nullptr;  // [channels], or null
  const float* b = nullptr;        // [batch, tokens, state_size], rows bc_stride apart
  const float* c = nullptr;        // the same
  int64_t bc_stride = 0;
  const float* z = nullptr;  // [batch, tokens, channels], rows z_stride apart
  int64_t z_stride = 0;
  const float* a = nullptr;   // [state_size, channels]: -exp(A_log), transposed
  const float* d = nullptr;   // [channels]
  const float* g = nullptr;   // [batch, tokens, channels]
  float* du = nullptr;        // [batch, tokens, channels]
  float* ddt = nullptr;       // [batch, tokens, channels]
  float* dz = nullptr;        // [batch, tokens, channels]
  float* db = nullptr;        // [batch, tokens, state_size]
  float* dc = nullptr;        // [batch, tokens, state_size]
  float* da_log = nullptr;    // [channels, state_size]
  float* dd = nullptr;        // [channels]
  float* ddt_bias = nullptr;  // [channels]
  Workspace workspace = {};   ///< `scan_gradient_workspace`
};
size_t scan_gradient_workspace(const ScanGradientArgs& args) noexcept;
Status selective_scan_gradient(const ScanGradientArgs& args, Stream stream) noexcept;

/// Of `ssd` with a gate, by runs as above. Where delta is clamped, no gradient passes to dt.
struct SsdGradientArgs {
  int32_t batch = 0;
  int32_t tokens = 0;
  int64_t heads = 0;  ///< a multiple of groups
  int64_t head_dim = 0;
  int64_t groups = 0;
  int64_t state_size = 0;      ///< 1 to kMaxSsdState
  const float* xbc = nullptr;  // [batch, tokens, heads * head_dim + 2 * groups * state_size], rows xbc_stride apart
  int64_t xbc_stride = 0;
  const float* dt = nullptr;  // [batch, tokens, heads], rows dt_stride apart
  int64_t dt_stride = 0;
  const float* z = nullptr;  // [batch, tokens, heads * head_dim], rows z_stride apart
  int64_t z_stride = 0;
  const float* dt_bias = nullptr;  // [heads]
  float dt_min = 0;
  float dt_max = 0;
  const float* a_log = nullptr;  // [heads]
  const float* d = nullptr;      // [heads]
  const float* g = nullptr;      // [batch, tokens, heads * head_dim]
  float* dxbc = nullptr;         // as xbc, contiguous
  float* ddt = nullptr;          // [batch, tokens, heads]
  float* dz = nullptr;           // [batch, tokens, heads * head_dim]
  float* da_log = nullptr;       // [heads]
  float* dd = nullptr;           // [heads]
  float* ddt_bias = nullptr;     // [heads]
  Workspace workspace = {};      ///< `ssd_gradient_workspace`
};
size_t ssd_gradient_workspace(const SsdGradientArgs& args) noexcept;
Status ssd_gradient(const SsdGradientArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
