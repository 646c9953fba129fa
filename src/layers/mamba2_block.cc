#include "layers/mamba2_block.h"

#include <algorithm>
#include <cmath>

#include "kernels/ssd.h"

namespace hxq {
namespace {

struct Mamba2State final : BlockState {
  explicit Mamba2State(Mamba2Mixer::State fresh) : mixer(std::move(fresh)) {}
  void reset() override { mixer.reset(); }

  Mamba2Mixer::State mixer;
};

class Mamba2Block final : public Block {
 public:
  Mamba2Block(const Mamba2BlockDesc& desc, const WeightSource& source) : mixer_(desc, source) {}

  std::unique_ptr<BlockState> new_state(const StateOptions&) const override {
    return std::make_unique<Mamba2State>(mixer_.new_state());
  }

  int64_t work_size(int64_t tokens) const override { return mixer_.work_size(tokens); }

  void forward(const BlockArgs& args, BlockState& state, const kernels::Context& context) const noexcept override {
    mixer_.add(args.x, args.x, args.tokens, args.work, static_cast<Mamba2State&>(state).mixer, context);
  }

 private:
  Mamba2Mixer mixer_;
};

}  // namespace

void Mamba2Mixer::State::reset() {
  std::ranges::fill(conv, 0.0f);
  std::ranges::fill(ssm, 0.0f);
}

Mamba2Mixer::Mamba2Mixer(const Mamba2BlockDesc& desc, const WeightSource& source)
    : desc_(desc),
      hidden_(source.model.hidden_size),
      norm_eps_(source.model.norm_eps),
      norm_(source.vector(desc.norm)),
      in_proj_(source, desc.in_proj, desc.in_proj_bias),
      conv_weight_(transpose(source.vector(desc.conv_weight), desc.conv_channels(), desc.conv_width)),
      conv_bias_(source.vector(desc.conv_bias)),
      dt_bias_(source.vector(desc.dt_bias)),
      a_(source.vector(desc.a_log)),
      d_(source.vector(desc.d)),
      gate_norm_(source.vector(desc.gate_norm)),
      out_proj_(source, desc.out_proj, desc.out_proj_bias) {
  for (float& a : a_) a = -std::exp(a);
}

Mamba2Mixer::State Mamba2Mixer::new_state() const {
  return {.conv = std::vector<float>(static_cast<size_t>((desc_.conv_width - 1) * desc_.conv_channels())),
          .ssm = std::vector<float>(static_cast<size_t>(desc_.inner() * desc_.state_size))};
}

int64_t Mamba2Mixer::work_size(int64_t tokens) const noexcept {
  return tokens * (hidden_ + desc_.projected() + desc_.conv_channels() + desc_.inner());
}

void Mamba2Mixer::add(const float* input, float* x, int64_t tokens, float* work, State& state,
                      const kernels::Context& context) const noexcept {
  const int64_t inner = desc_.inner();
  const int64_t channels = desc_.conv_channels();
  const int64_t projected = desc_.projected();
  float* normed = work;                       // [tokens, hidden]
  float* zxbcdt = normed + tokens * hidden_;  // [tokens, projected]: gate z, then x, B and C, then dt
  float* xbc = zxbcdt + tokens * projected;   // [tokens, conv_channels]: x, B, C
  float* y = xbc + tokens * channels;         // [tokens, inner]

  kernels::rms_norm(
      {.x = input, .weight = norm_.data(), .y = normed, .tokens = tokens, .dim = hidden_, .eps = norm_eps_}, context);
  in_proj_({.x = normed, .x_stride = hidden_, .y = zxbcdt, .y_stride = projected, .tokens = tokens}, context);
  kernels::causal_conv1d_silu({.x = zxbcdt + inner,
                               .x_stride = projected,
                               .y = xbc,
                               .tokens = tokens,
                               .channels = channels,
                               .width = desc_.conv_width,
                               .weight = conv_weight_.data(),
                               .bias = conv_bias_.empty() ? nullptr : conv_bias_.data(),
                               .state = state.conv.data()},
                              context);
  kernels::ssd({.x = xbc,
                .b = xbc + inner,
                .c = xbc + inner + desc_.groups * desc_.state_size,
                .xbc_stride = channels,
                .dt = zxbcdt + inner + channels,
                .dt_stride = projected,
                .dt_bias = dt_bias_.data(),
                .dt_min = desc_.dt_min,
                .dt_max = desc_.dt_max,
                .a = a_.data(),
                .d = d_.data(),
                .z = zxbcdt,
                .z_stride = projected,
                .state = state.ssm.data(),
                .y = y,
                .tokens = tokens,
                .heads = desc_.heads,
                .head_dim = desc_.head_dim,
                .groups = desc_.groups,
                .state_size = desc_.state_size},
               context);
  kernels::rms_norm({.x = y,
                     .weight = gate_norm_.data(),
                     .y = y,
                     .tokens = tokens,
                     .dim = inner,
                     .groups = desc_.groups,
                     .eps = desc_.gate_norm_eps},
                    context);
  out_proj_({.x = y, .x_stride = inner, .y = x, .y_stride = hidden_, .tokens = tokens, .accumulate = true}, context);
}

std::unique_ptr<Block> make_mamba2_block(const Mamba2BlockDesc& desc, const WeightSource& source) {
  return std::make_unique<Mamba2Block>(desc, source);
}

}  // namespace hxq
