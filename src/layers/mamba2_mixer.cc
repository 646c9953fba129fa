#include "layers/mamba2_mixer.h"

#include "kernels/ssd.h"

namespace hxq {

Mamba2State::Mamba2State(const StateOptions& options, const Mamba2BlockDesc& desc)
    : desc_(desc),
      conv_(*options.device, (desc.conv_width - 1) * desc.conv_channels(), "the state of a convolution"),
      ssm_(*options.device, desc.inner() * desc.state_size, "the state of Mamba-2's recurrence") {
  reset();
}

void Mamba2State::reset() {
  conv_.clear();
  ssm_.clear();
}

void Mamba2State::copy_from(const Mamba2State& other) {
  conv_.copy_from(other.conv_);
  ssm_.copy_from(other.ssm_);
}

void Mamba2State::put_arrays(std::span<void*> arrays) const noexcept {
  arrays[0] = conv_.data();
  arrays[1] = ssm_.data();
}

StateValues Mamba2State::read(StateKind kind) const {
  if (kind == StateKind::conv) return read_state(conv_, {desc_.conv_width - 1, desc_.conv_channels()});
  if (kind == StateKind::ssm) return read_state(ssm_, {desc_.heads, desc_.state_size, desc_.head_dim});
  return {};
}

Mamba2Mixer::Mamba2Mixer(const Mamba2BlockDesc& desc, const WeightSource& source)
    : desc_(desc),
      hidden_(source.model.hidden_size),
      norm_(source, desc.norm, source.model.norm_eps),
      in_proj_(source, desc.in_proj, desc.in_proj_bias),
      conv_weight_(
          source.upload(transpose(source.host_vector(desc.conv_weight), desc.conv_channels(), desc.conv_width))),
      conv_bias_(source.vector(desc.conv_bias)),
      dt_bias_(source.vector(desc.dt_bias)),
      a_(source.upload(decay_rates(source.host_vector(desc.a_log)))),
      d_(source.vector(desc.d)),
      gate_norm_(source, desc.gate_norm, desc.gate_norm_eps, desc.groups),
      out_proj_(source, desc.out_proj, desc.out_proj_bias) {}

void Mamba2Mixer::operator()(const float* input, float* x, const kernels::Batch& batch, const StateArrays& state,
                             WorkMemory work, const kernels::Context& context) const noexcept {
  const int64_t rows = batch.rows;
  const int64_t inner = desc_.inner();
  const int64_t channels = desc_.conv_channels();
  const int64_t projected = desc_.projected();
  float* normed = work.take<float>(rows * hidden_);    // [rows, hidden]
  float* zxbcdt = work.take<float>(rows * projected);  // [rows, projected]: gate z, then x, B and C, then dt
  float* xbc = work.take<float>(rows * channels);      // [rows, conv_channels]: x, B, C
  float* y = work.take<float>(rows * inner);           // [rows, inner]

  JointProjections in(norm_(input, normed, rows), normed, hidden_);
  in.add(in_proj_, zxbcdt, projected);
  in.run(batch, context);
  kernels::causal_conv1d_silu({.x = zxbcdt + inner,
                               .x_stride = projected,
                               .y = xbc,
                               .batch = batch,
                               .channels = channels,
                               .width = desc_.conv_width,
                               .weight = conv_weight_.data(),
                               .bias = conv_bias_.data(),
                               .state = state.array(0),
                               .state_rows = desc_.conv_width - 1},
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
                .state = state.array(1),
                .y = y,
                .batch = batch,
                .heads = desc_.heads,
                .head_dim = desc_.head_dim,
                .groups = desc_.groups,
                .state_size = desc_.state_size},
               context);
  JointProjections out(gate_norm_(y, y, rows), y, inner);
  out.add(out_proj_, x, hidden_, true);
  out.run(batch, context);
}

}  // namespace hxq
