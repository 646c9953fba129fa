#pragma once

#include <vector>

#include "layers/block.h"
#include "layers/projection.h"

namespace hxq {

/// Mamba-2's mixer with the norm before it and without the residual (Dao & Gu 2024, arXiv 2405.21060).
class Mamba2Mixer {
 public:
  struct State {
    std::vector<float> conv;  // [conv_width - 1, conv_channels]
    std::vector<float> ssm;   // [heads, state_size, head_dim]
    void reset();
  };

  Mamba2Mixer(const Mamba2BlockDesc& desc, const WeightSource& source);

  State new_state() const;
  int64_t work_size(int64_t tokens) const noexcept;

  /// x += mixer(norm(input)). x and input: [tokens, hidden], may be the same. work: work_size(tokens) floats.
  void add(const float* input, float* x, int64_t tokens, float* work, State& state,
           const kernels::Context& context) const noexcept;

 private:
  Mamba2BlockDesc desc_;
  int64_t hidden_;
  float norm_eps_;
  std::vector<float> norm_;         // [hidden]
  Projection in_proj_;              // [projected, hidden]
  std::vector<float> conv_weight_;  // [conv_width, conv_channels]
  std::vector<float> conv_bias_;    // [conv_channels] or empty
  std::vector<float> dt_bias_;      // [heads]
  std::vector<float> a_;            // [heads]: -exp(A_log)
  std::vector<float> d_;            // [heads]
  std::vector<float> gate_norm_;    // [inner]
  Projection out_proj_;             // [hidden, inner]
};

/// A residual block of nothing but the mixer.
std::unique_ptr<Block> make_mamba2_block(const Mamba2BlockDesc& desc, const WeightSource& source);

}  // namespace hxq
