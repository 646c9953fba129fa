#pragma once

#include "layers/norm.h"
#include "layers/projection.h"

namespace hxq {

/// What Mamba-2's mixer remembers of one sequence.
class Mamba2State {
 public:
  static constexpr int64_t kArrays = 2;

  Mamba2State(const StateOptions& options, const Mamba2BlockDesc& desc);
  void reset();
  void copy_from(const Mamba2State& other);
  int64_t bytes() const noexcept { return static_cast<int64_t>(conv_.bytes() + ssm_.bytes()); }
  void put_arrays(std::span<void*> arrays) const noexcept;
  StateValues read(StateKind kind) const;

 private:
  Mamba2BlockDesc desc_;
  kernels::DeviceArray<float> conv_;  // [conv_width - 1, conv_channels]
  kernels::DeviceArray<float> ssm_;   // [heads, state_size, head_dim]
};

/// Mamba-2's mixer with the norm before it and without the residual (Dao & Gu 2024, arXiv 2405.21060).
class Mamba2Mixer {
 public:
  Mamba2Mixer(const Mamba2BlockDesc& desc, const WeightSource& source);

  /// x += mixer(norm(input)). x and input: [rows, hidden], may be the same.
  void operator()(const float* input, float* x, const kernels::Batch& batch, const StateArrays& state, WorkMemory work,
                  const kernels::Context& context) const noexcept;

 private:
  Mamba2BlockDesc desc_;
  int64_t hidden_;
  RmsNorm norm_;
  Projection in_proj_;                       // [projected, hidden]
  kernels::DeviceArray<float> conv_weight_;  // [conv_width, conv_channels]
  kernels::DeviceArray<float> conv_bias_;    // [conv_channels] or empty
  kernels::DeviceArray<float> dt_bias_;      // [heads]
  kernels::DeviceArray<float> a_;            // [heads]: -exp(A_log)
  kernels::DeviceArray<float> d_;            // [heads]
  RmsNorm gate_norm_;                        // of groups
  Projection out_proj_;                      // [hidden, inner]
};

}  // namespace hxq
