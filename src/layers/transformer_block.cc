#include "layers/transformer_block.h"

#include <cmath>

#include "kernels/transformer_layer.h"
#include "layers/attention.h"
#include "layers/gated_mlp.h"
#include "layers/norm.h"

namespace hxq {
namespace {

class TransformerState final : public BlockState {
 public:
  TransformerState(const StateOptions& options, const AttentionDesc& desc)
      : attention_(options, desc.kv_heads, desc.head_dim, &desc.rope) {}

  void reset() override { attention_.reset(); }
  void copy_from(const BlockState& other, int64_t positions) override {
    attention_.copy_from(static_cast<const TransformerState&>(other).attention_, positions);
  }
  int64_t bytes() const noexcept override { return attention_.bytes(); }
  void reserve(int64_t positions, int64_t end) override { attention_.reserve(positions, end); }
  void put_arrays(std::span<void*> arrays) const noexcept override { attention_.put_arrays(arrays); }
  StateValues read(StateKind kind, int64_t positions) const override { return attention_.read(kind, positions); }

 private:
  AttentionState attention_;
};

Attention make_attention(const AttentionDesc& desc, const WeightSource& source) {
  return {{.heads = desc.heads,
           .kv_heads = desc.kv_heads,
           .head_dim = desc.head_dim,
           .window = desc.window,
           .scale = 1.0f / std::sqrt(static_cast<float>(desc.head_dim)),
           .kv_cache = source.state.kv_cache},
          {source, {.weight = desc.q_proj}, desc.q_bias},
          {source, {.weight = desc.k_proj}, desc.k_bias},
          {source, {.weight = desc.v_proj}, desc.v_bias},
          {source, desc.o_proj, desc.o_bias}};
}

GatedMlp make_mlp(const GatedMlpDesc& desc, const WeightSource& source) {
  return {{source, {.weight = desc.gate_proj}, desc.gate_bias},
          Projection(source, desc.up_proj, desc.up_bias),
          {source, desc.down_proj, desc.down_bias},
          desc.activation};
}

/// Whether the device did both as one operation.
bool run_as_one(const Attention::Parts& attention, const GatedMlp::Parts& mlp,
                const kernels::Context& context) noexcept {
  const kernels::FusedLinearArgs* qkv = attention.qkv.fused();
  const kernels::FusedLinearArgs* gate_up = mlp.gate_up.fused();
  return qkv != nullptr && gate_up != nullptr &&
         kernels::transformer_layer({.qkv = *qkv,
                                     .step = attention.step,
                                     .o = attention.o,
                                     .gate_up = *gate_up,
                                     .activation = mlp.activation,
                                     .down = mlp.down},
                                    context);
}

class TransformerBlock final : public Block {
 public:
  TransformerBlock(const TransformerBlockDesc& desc, const WeightSource& source)
      : desc_(desc.attention),
        state_options_(source.state),
        hidden_(source.model.hidden_size),
        attention_norm_(source, desc.attention.norm, source.model.norm_eps),
        attention_(make_attention(desc.attention, source)),
        mlp_norm_(source, desc.mlp.norm, source.model.norm_eps),
        mlp_(make_mlp(desc.mlp, source)) {}

  std::unique_ptr<BlockState> new_state() const override {
    return std::make_unique<TransformerState>(state_options_, desc_);
  }
  int64_t state_arrays() const noexcept override { return AttentionState::kArrays; }

  void forward(const BlockArgs& args, const kernels::Context& context) const noexcept override {
    WorkMemory work = args.work;
    float* normed = work.take<float>(args.batch.rows * hidden_);  // [rows, hidden]
    const Attention::Parts attention =
        attention_.parts(attention_norm_(args.x, normed, args.batch.rows), args.x, true, args.batch, args.state, work);
    const GatedMlp::Parts mlp =  // in the same work memory: it comes after
        mlp_.parts(mlp_norm_(args.x, normed, args.batch.rows), args.x, true, args.batch, work);
    if (args.batch.has_one_token_each() && run_as_one(attention, mlp, context)) return;
    attention.run(args.batch, context);
    mlp.run(args.batch, context);
  }

 private:
  AttentionDesc desc_;
  StateOptions state_options_;
  int64_t hidden_;
  RmsNorm attention_norm_;
  Attention attention_;
  RmsNorm mlp_norm_;
  GatedMlp mlp_;
};

}  // namespace

std::unique_ptr<Block> make_transformer_block(const TransformerBlockDesc& desc, const WeightSource& source) {
  return std::make_unique<TransformerBlock>(desc, source);
}

}  // namespace hxq
