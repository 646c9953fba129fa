#include "layers/mamba_block.h"

#include <algorithm>
#include <cmath>

namespace hxq {
namespace {

struct MambaState final : BlockState {
  std::vector<float> conv;  // [conv_width - 1, inner]
  std::vector<float> ssm;   // [state_size, inner]

  void reset() override {
    std::ranges::fill(conv, 0.0f);
    std::ranges::fill(ssm, 0.0f);
  }
};

class MambaBlock final : public Block {
 public:
  MambaBlock(const MambaBlockDesc& desc, const WeightSource& source)
      : desc_(desc),
        hidden_(source.model.hidden_size),
        norm_eps_(source.model.norm_eps),
        norm_(source.vector(desc.norm)),
        in_proj_(source.matrix(desc.in_proj)),
        in_proj_bias_(source.vector(desc.in_proj_bias)),
        conv_weight_(transpose(source.vector(desc.conv_weight), desc.inner, desc.conv_width)),
        conv_bias_(source.vector(desc.conv_bias)),
        x_proj_(source.matrix(desc.x_proj)),
        dt_proj_(source.matrix(desc.dt_proj)),
        dt_bias_(source.vector(desc.dt_bias)),
        a_(transpose(source.vector(desc.a_log), desc.inner, desc.state_size)),
        d_(source.vector(desc.d)),
        out_proj_(source.matrix(desc.out_proj)),
        out_proj_bias_(source.vector(desc.out_proj_bias)) {
    for (float& a : a_) a = -std::exp(a);
  }

  std::unique_ptr<BlockState> new_state(const StateOptions&) const override {
    auto state = std::make_unique<MambaState>();
    state->conv.resize(static_cast<size_t>((desc_.conv_width - 1) * desc_.inner));
    state->ssm.resize(static_cast<size_t>(desc_.state_size * desc_.inner));
    return state;
  }

  int64_t work_size(int64_t tokens) const override {
    return tokens * (hidden_ + 4 * desc_.inner + desc_.dt_rank + 2 * desc_.state_size);
  }

  void forward(const BlockArgs& args, BlockState& block_state,
               const kernels::Context& context) const noexcept override {
    auto& state = static_cast<MambaState&>(block_state);
    const int64_t tokens = args.tokens;
    const int64_t inner = desc_.inner;
    const int64_t dbc_size = desc_.dt_rank + 2 * desc_.state_size;
    float* normed = args.work;              // [tokens, hidden]
    float* xz = normed + tokens * hidden_;  // [tokens, 2 * inner]: x, gate z
    float* u = xz + tokens * 2 * inner;     // [tokens, inner], later the scan's output
    float* dbc = u + tokens * inner;        // [tokens, dt_rank + 2 * state_size]: dt, B, C
    float* dt = dbc + tokens * dbc_size;    // [tokens, inner]

    kernels::rms_norm(
        {.x = args.x, .weight = norm_.data(), .y = normed, .tokens = tokens, .dim = hidden_, .eps = norm_eps_},
        context);
    linear(*in_proj_,
           {.x = normed,
            .x_stride = hidden_,
            .y = xz,
            .y_stride = 2 * inner,
            .tokens = tokens,
            .bias = data_or_null(in_proj_bias_)},
           context);
    kernels::causal_conv1d_silu({.x = xz,
                                 .x_stride = 2 * inner,
                                 .y = u,
                                 .tokens = tokens,
                                 .channels = inner,
                                 .width = desc_.conv_width,
                                 .weight = conv_weight_.data(),
                                 .bias = data_or_null(conv_bias_),
                                 .state = state.conv.data()},
                                context);
    linear(*x_proj_, {.x = u, .x_stride = inner, .y = dbc, .y_stride = dbc_size, .tokens = tokens}, context);
    linear(*dt_proj_, {.x = dbc, .x_stride = dbc_size, .y = dt, .y_stride = inner, .tokens = tokens}, context);
    kernels::selective_scan({.u = u,
                             .dt = dt,
                             .dt_bias = dt_bias_.data(),
                             .b = dbc + desc_.dt_rank,
                             .c = dbc + desc_.dt_rank + desc_.state_size,
                             .bc_stride = dbc_size,
                             .z = xz + inner,
                             .z_stride = 2 * inner,
                             .a = a_.data(),
                             .d = d_.data(),
                             .state = state.ssm.data(),
                             .y = u,
                             .tokens = tokens,
                             .channels = inner,
                             .state_size = desc_.state_size},
                            context);
    linear(*out_proj_,
           {.x = u,
            .x_stride = inner,
            .y = args.x,
            .y_stride = hidden_,
            .tokens = tokens,
            .bias = data_or_null(out_proj_bias_),
            .accumulate = true},
           context);
  }

 private:
  static const float* data_or_null(const std::vector<float>& values) noexcept {
    return values.empty() ? nullptr : values.data();
  }

  MambaBlockDesc desc_;
  int64_t hidden_;
  float norm_eps_;
  std::vector<float> norm_;           // [hidden]
  const Weight* in_proj_;             // [2 * inner, hidden]
  std::vector<float> in_proj_bias_;   // [2 * inner] or empty
  std::vector<float> conv_weight_;    // [conv_width, inner]
  std::vector<float> conv_bias_;      // [inner] or empty
  const Weight* x_proj_;              // [dt_rank + 2 * state_size, inner]
  const Weight* dt_proj_;             // [inner, dt_rank]
  std::vector<float> dt_bias_;        // [inner]
  std::vector<float> a_;              // [state_size, inner]: -exp(A_log)
  std::vector<float> d_;              // [inner]
  const Weight* out_proj_;            // [hidden, inner]
  std::vector<float> out_proj_bias_;  // [hidden] or empty
};

}  // namespace

std::unique_ptr<Block> make_mamba_block(const MambaBlockDesc& desc, const WeightSource& source) {
  return std::make_unique<MambaBlock>(desc, source);
}

}  // namespace hxq
