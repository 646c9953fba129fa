#include "layers/zamba2_block.h"

#include <cmath>

#include "layers/attention.h"
#include "layers/gated_mlp.h"
#include "layers/mamba2_mixer.h"
#include "layers/norm.h"

namespace hxq {
namespace {

class Zamba2State final : public BlockState {
 public:
  static constexpr int64_t kArrays = AttentionState::kArrays + Mamba2State::kArrays;

  Zamba2State(const StateOptions& options, const Zamba2BlockDesc& desc)
      : attention_(options, desc.kv_heads, desc.head_dim, desc.rotary ? &desc.rope : nullptr),
        mixer_(options, desc.mamba) {}

  void reset() override {
    attention_.reset();
    mixer_.reset();
  }
  void copy_from(const BlockState& other, int64_t positions) override {
    const auto& from = static_cast<const Zamba2State&>(other);
    attention_.copy_from(from.attention_, positions);
    mixer_.copy_from(from.mixer_);
  }
  int64_t bytes() const noexcept override { return attention_.bytes() + mixer_.bytes(); }
  void reserve(int64_t positions, int64_t end) override { attention_.reserve(positions, end); }
  void put_arrays(std::span<void*> arrays) const noexcept override {
    attention_.put_arrays(arrays);
    mixer_.put_arrays(arrays.subspan(AttentionState::kArrays));
  }
  StateValues read(StateKind kind, int64_t positions) const override {
    const bool attention = kind == StateKind::keys || kind == StateKind::values;
    return attention ? attention_.read(kind, positions) : mixer_.read(kind);
  }

 private:
  AttentionState attention_;
  Mamba2State mixer_;
};

Attention make_attention(const Zamba2BlockDesc& desc, const WeightSource& source) {
  return {{.heads = desc.heads,
           .kv_heads = desc.kv_heads,
           .head_dim = desc.head_dim,
           // Half of a head's width counts: the other half came with the embedding.
           .scale = 1.0f / std::sqrt(static_cast<float>(desc.head_dim) / 2),
           .rotary = desc.rotary,
           .kv_cache = source.state.kv_cache},
          {source, desc.q_proj},
          {source, desc.k_proj},
          {source, desc.v_proj},
          {source, desc.o_proj}};
}

class Zamba2Block final : public Block {
 public:
  Zamba2Block(const Zamba2BlockDesc& desc, const WeightSource& source)
      : desc_(desc),
        state_options_(source.state),
        hidden_(source.model.hidden_size),
        input_norm_(source, desc.input_norm, source.model.norm_eps),
        attention_(make_attention(desc, source)),
        mlp_norm_(source, desc.mlp_norm, source.model.norm_eps),
        mlp_({source, desc.gate_up_proj, desc.gate_up_bias}, std::nullopt, {source, desc.down_proj, desc.down_bias},
             desc.activation),
        linear_(source, desc.linear),
        mixer_(desc.mamba, source) {}

  std::unique_ptr<BlockState> new_state() const override {
    return std::make_unique<Zamba2State>(state_options_, desc_);
  }
  int64_t state_arrays() const noexcept override { return Zamba2State::kArrays; }

  void forward(const BlockArgs& args, const kernels::Context& context) const noexcept override {
    const int64_t rows = args.batch.rows;
    WorkMemory work = args.work;
    float* sum = work.take<float>(rows * hidden_);          // [rows, hidden]: the mixer's input
    float* transformed = work.take<float>(rows * hidden_);  // [rows, hidden]

    copy(args.x, sum, hidden_, rows, context);
    attend(args, transformed, work, context);
    mlp_(mlp_norm_(transformed, transformed, rows), transformed, false, args.batch, work, context);
    linear_({.x = transformed, .x_stride = hidden_, .y = sum, .y_stride = hidden_, .accumulate = true}, args.batch,
            context);
    mixer_(sum, args.x, args.batch, args.state.from(AttentionState::kArrays), work, context);
  }

 private:
  /// y = attention(norm([x, embedding])).
  void attend(const BlockArgs& args, float* y, WorkMemory work, const kernels::Context& context) const noexcept {
    const int64_t rows = args.batch.rows;
    float* both = work.take<float>(rows * 2 * hidden_);  // [rows, 2 * hidden]: x, embedding
    copy(args.x, both, 2 * hidden_, rows, context);
    copy(args.embedding, both + hidden_, 2 * hidden_, rows, context);
    attention_(input_norm_(both, both, rows), y, false, args.batch, args.state, work, context);
  }

  void copy(const float* from, float* to, int64_t to_stride, int64_t rows,
            const kernels::Context& context) const noexcept {
    kernels::copy_rows(
        {.from = from, .from_stride = hidden_, .to = to, .to_stride = to_stride, .rows = rows, .cols = hidden_},
        context);
  }

  Zamba2BlockDesc desc_;
  StateOptions state_options_;
  int64_t hidden_;
  RmsNorm input_norm_;  // of x and embedding side by side
  Attention attention_;
  RmsNorm mlp_norm_;
  GatedMlp mlp_;
  Projection linear_;  // [hidden, hidden]
  Mamba2Mixer mixer_;
};

}  // namespace

std::unique_ptr<Block> make_zamba2_block(const Zamba2BlockDesc& desc, const WeightSource& source) {
  return std::make_unique<Zamba2Block>(desc, source);
}

}  // namespace hxq
