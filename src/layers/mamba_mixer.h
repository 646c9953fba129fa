#pragma once

#include "kernels/fused_linear.h"
#include "layers/work_memory.h"

namespace hxq {

/// Mamba-1's mixer (Gu & Dao 2023, arXiv 2312.00752), over weights that are somebody else's, in device memory.
struct MambaMixer {
  const kernels::PreparedMatrix* in_proj = nullptr;   // [2 * inner, hidden]: x, then the gate z
  const kernels::PreparedMatrix* x_proj = nullptr;    // [dt_rank + 2 * state_size, inner]: dt, B, C
  const kernels::PreparedMatrix* dt_proj = nullptr;   // [inner, dt_rank]
  const kernels::PreparedMatrix* out_proj = nullptr;  // [hidden, inner]
  const float* in_proj_bias = nullptr;                // [2 * inner], or null
  const float* out_proj_bias = nullptr;               // [hidden], or null
  const float* conv_weight = nullptr;                 // [conv_width, inner]
  const float* conv_bias = nullptr;                   // [inner], or null
  const float* dt_bias = nullptr;                     // [inner], or null
  const float* a = nullptr;                           // [state_size, inner]: -exp(A_log)
  const float* d = nullptr;                           // [inner]
  int64_t conv_width = 0;
  int64_t state_size = 0;

  struct Args {
    std::optional<kernels::RmsNormArgs> norm = {};  ///< before the mixer, with x as its y
    const float* x = nullptr;                       // [rows, hidden], contiguous
    float* y = nullptr;                             // [rows, hidden], contiguous
    bool accumulate = false;                        ///< add to y instead of overwriting it
    kernels::Batch batch = {};
    void* const* conv_state = nullptr;  // [segments]: float [conv_state_rows, inner] of each
    int64_t conv_state_rows = 0;        ///< conv_width - 1 or more
    void* const* ssm_state = nullptr;   // [segments]: float [state_size, inner] of each
  };
  /// y = mixer(x) (+ y).
  void operator()(const Args& args, WorkMemory work, const kernels::Context& context) const noexcept;
};

}  // namespace hxq
