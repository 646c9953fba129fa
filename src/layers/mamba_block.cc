#include "layers/mamba_block.h"

#include "layers/mamba_mixer.h"
#include "layers/norm.h"

namespace hxq {
namespace {

class MambaState final : public BlockState {
 public:
  static constexpr int64_t kArrays = 2;

  MambaState(const StateOptions& options, const MambaBlockDesc& desc)
      : desc_(desc),
        conv_(*options.device, (desc.conv_width - 1) * desc.inner, "the state of a convolution"),
        ssm_(*options.device, desc.state_size * desc.inner, "the state of Mamba's scan") {
    MambaState::reset();
  }

  void reset() override {
    conv_.clear();
    ssm_.clear();
  }

  void copy_from(const BlockState& other, int64_t) override {
    const auto& from = static_cast<const MambaState&>(other);
    conv_.copy_from(from.conv_);
    ssm_.copy_from(from.ssm_);
  }

  int64_t bytes() const noexcept override { return static_cast<int64_t>(conv_.bytes() + ssm_.bytes()); }

  void put_arrays(std::span<void*> arrays) const noexcept override {
    arrays[0] = conv_.data();
    arrays[1] = ssm_.data();
  }

  StateValues read(StateKind kind, int64_t) const override {
    if (kind == StateKind::conv) return read_state(conv_, {desc_.conv_width - 1, desc_.inner});
    if (kind == StateKind::ssm) return read_state(ssm_, {desc_.state_size, desc_.inner});
    return {};
  }

 private:
  MambaBlockDesc desc_;
  kernels::DeviceArray<float> conv_;  // [conv_width - 1, inner]
  kernels::DeviceArray<float> ssm_;   // [state_size, inner]
};

class MambaBlock final : public Block {
 public:
  MambaBlock(const MambaBlockDesc& desc, const WeightSource& source)
      : desc_(desc),
        state_options_(source.state),
        hidden_(source.model.hidden_size),
        norm_(source, desc.norm, source.model.norm_eps),
        in_proj_bias_(source.vector(desc.in_proj_bias)),
        out_proj_bias_(source.vector(desc.out_proj_bias)),
        conv_weight_(source.upload(transpose(source.host_vector(desc.conv_weight), desc.inner, desc.conv_width))),
        conv_bias_(source.vector(desc.conv_bias)),
        dt_bias_(source.vector(desc.dt_bias)),
        a_(source.upload(decay_rates(transpose(source.host_vector(desc.a_log), desc.inner, desc.state_size)))),
        d_(source.vector(desc.d)),
        mixer_{.in_proj = source.matrix(desc.in_proj),
               .x_proj = source.matrix(desc.x_proj),
               .dt_proj = source.matrix(desc.dt_proj),
               .out_proj = source.matrix(desc.out_proj),
               .in_proj_bias = in_proj_bias_.data(),
               .out_proj_bias = out_proj_bias_.data(),
               .conv_weight = conv_weight_.data(),
               .conv_bias = conv_bias_.data(),
               .dt_bias = dt_bias_.data(),
               .a = a_.data(),
               .d = d_.data(),
               .conv_width = desc.conv_width,
               .state_size = desc.state_size} {}

  std::unique_ptr<BlockState> new_state() const override { return std::make_unique<MambaState>(state_options_, desc_); }
  int64_t state_arrays() const noexcept override { return MambaState::kArrays; }

  void forward(const BlockArgs& args, const kernels::Context& context) const noexcept override {
    WorkMemory work = args.work;
    float* normed = work.take<float>(args.batch.rows * hidden_);  // [rows, hidden]
    mixer_({.norm = norm_(args.x, normed, args.batch.rows),
            .x = normed,
            .y = args.x,
            .accumulate = true,
            .batch = args.batch,
            .conv_state = args.state.array(0),
            .conv_state_rows = desc_.conv_width - 1,
            .ssm_state = args.state.array(1)},
           work, context);
  }

 private:
  MambaBlockDesc desc_;
  StateOptions state_options_;
  int64_t hidden_;
  RmsNorm norm_;
  kernels::DeviceArray<float> in_proj_bias_;   // [2 * inner] or empty
  kernels::DeviceArray<float> out_proj_bias_;  // [hidden] or empty
  kernels::DeviceArray<float> conv_weight_;    // [conv_width, inner]
  kernels::DeviceArray<float> conv_bias_;      // [inner] or empty
  kernels::DeviceArray<float> dt_bias_;        // [inner]
  kernels::DeviceArray<float> a_;              // [state_size, inner]: -exp(A_log)
  kernels::DeviceArray<float> d_;              // [inner]
  MambaMixer mixer_;
};

}  // namespace

std::unique_ptr<Block> make_mamba_block(const MambaBlockDesc& desc, const WeightSource& source) {
  return std::make_unique<MambaBlock>(desc, source);
}

}  // namespace hxq
