#include "layers/transformer_block.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "layers/projection.h"

namespace hxq {
namespace {

struct TransformerState final : BlockState {
  TransformerState(const AttentionDesc& attention, DType dtype)
      : rope(attention.rope),
        cache(attention.kv_heads, attention.head_dim, dtype),
        inverse_frequency(inverse_frequencies(rope, 0)) {}

  RopeDesc rope;
  kernels::KvCache cache;
  std::vector<float> inverse_frequency;  // [head_dim / 2]

  /// What the cache holds past the position is never looked at.
  void reset() override {}

  void prepare(const TokenRange& range) override {
    cache.reserve(range.position + range.tokens);
    // Keys that are in the cache keep the angles they came with, as in transformers.
    if (rope.type == RopeDesc::Type::dynamic) inverse_frequency = inverse_frequencies(rope, range.end);
  }
};

class TransformerBlock final : public Block {
 public:
  TransformerBlock(const TransformerBlockDesc& desc, const WeightSource& source)
      : attention_(desc.attention),
        mlp_(desc.mlp),
        hidden_(source.model.hidden_size),
        norm_eps_(source.model.norm_eps),
        attention_norm_(source.vector(attention_.norm)),
        q_proj_(source, attention_.q_proj, attention_.q_bias),
        k_proj_(source, attention_.k_proj, attention_.k_bias),
        v_proj_(source, attention_.v_proj, attention_.v_bias),
        o_proj_(source, attention_.o_proj, attention_.o_bias),
        mlp_norm_(source.vector(mlp_.norm)),
        gate_proj_(source, mlp_.gate_proj, mlp_.gate_bias),
        up_proj_(source, mlp_.up_proj, mlp_.up_bias),
        down_proj_(source, mlp_.down_proj, mlp_.down_bias) {}

  std::unique_ptr<BlockState> new_state(const StateOptions& options) const override {
    return std::make_unique<TransformerState>(attention_, options.kv_cache);
  }

  int64_t work_size(int64_t tokens) const override {
    return tokens * (hidden_ + std::max(2 * q_size() + 2 * kv_size() + attention_.head_dim, 2 * mlp_.inner));
  }

  void forward(const BlockArgs& args, BlockState& block_state,
               const kernels::Context& context) const noexcept override {
    attend(args, static_cast<TransformerState&>(block_state), context);
    feed_forward(args, context);
  }

 private:
  int64_t q_size() const noexcept { return attention_.heads * attention_.head_dim; }
  int64_t kv_size() const noexcept { return attention_.kv_heads * attention_.head_dim; }

  void attend(const BlockArgs& args, TransformerState& state, const kernels::Context& context) const noexcept {
    const int64_t tokens = args.tokens;
    float* normed = args.work;                    // [tokens, hidden]
    float* q = normed + tokens * hidden_;         // [tokens, heads, head_dim]
    float* k = q + tokens * q_size();             // [tokens, kv_heads, head_dim]
    float* v = k + tokens * kv_size();            // [tokens, kv_heads, head_dim]
    float* attended = v + tokens * kv_size();     // [tokens, heads, head_dim]
    float* table = attended + tokens * q_size();  // [tokens, 2, head_dim / 2]

    norm(args, attention_norm_, normed, context);
    kernels::rotary_table({.inverse_frequency = state.inverse_frequency.data(),
                           .half = attention_.head_dim / 2,
                           .position = args.position,
                           .tokens = tokens,
                           .table = table},
                          context);
    q_proj_({.x = normed, .x_stride = hidden_, .y = q, .y_stride = q_size(), .tokens = tokens}, context);
    k_proj_({.x = normed, .x_stride = hidden_, .y = k, .y_stride = kv_size(), .tokens = tokens}, context);
    v_proj_({.x = normed, .x_stride = hidden_, .y = v, .y_stride = kv_size(), .tokens = tokens}, context);
    const kernels::KvCacheView cache = state.cache.view();
    kernels::extend_cache({.q = q,
                           .k = k,
                           .v = v,
                           .q_stride = q_size(),
                           .kv_stride = kv_size(),
                           .query_heads = attention_.heads,
                           .rotary_table = table,
                           .position = args.position,
                           .tokens = tokens,
                           .cache = cache},
                          context);
    kernels::attention({.q = q,
                        .q_stride = q_size(),
                        .y = attended,
                        .y_stride = q_size(),
                        .query_heads = attention_.heads,
                        .scale = 1.0f / std::sqrt(static_cast<float>(attention_.head_dim)),
                        .window = attention_.window,
                        .position = args.position,
                        .tokens = tokens,
                        .cache = cache},
                       context);
    o_proj_(
        {.x = attended, .x_stride = q_size(), .y = args.x, .y_stride = hidden_, .tokens = tokens, .accumulate = true},
        context);
  }

  void feed_forward(const BlockArgs& args, const kernels::Context& context) const noexcept {
    const int64_t tokens = args.tokens;
    float* normed = args.work;                // [tokens, hidden]
    float* gate = normed + tokens * hidden_;  // [tokens, inner], then the activated product
    float* up = gate + tokens * mlp_.inner;   // [tokens, inner]

    norm(args, mlp_norm_, normed, context);
    gate_proj_({.x = normed, .x_stride = hidden_, .y = gate, .y_stride = mlp_.inner, .tokens = tokens}, context);
    up_proj_({.x = normed, .x_stride = hidden_, .y = up, .y_stride = mlp_.inner, .tokens = tokens}, context);
    kernels::gated_activation({.gate = gate,
                               .up = up,
                               .x_stride = mlp_.inner,
                               .y = gate,
                               .y_stride = mlp_.inner,
                               .tokens = tokens,
                               .dim = mlp_.inner,
                               .activation = mlp_.activation},
                              context);
    down_proj_(
        {.x = gate, .x_stride = mlp_.inner, .y = args.x, .y_stride = hidden_, .tokens = tokens, .accumulate = true},
        context);
  }

  void norm(const BlockArgs& args, const std::vector<float>& weight, float* y,
            const kernels::Context& context) const noexcept {
    kernels::rms_norm(
        {.x = args.x, .weight = weight.data(), .y = y, .tokens = args.tokens, .dim = hidden_, .eps = norm_eps_},
        context);
  }

  AttentionDesc attention_;
  GatedMlpDesc mlp_;
  int64_t hidden_;
  float norm_eps_;
  std::vector<float> attention_norm_;  // [hidden]
  Projection q_proj_;                  // [heads * head_dim, hidden]
  Projection k_proj_;                  // [kv_heads * head_dim, hidden]
  Projection v_proj_;                  // [kv_heads * head_dim, hidden]
  Projection o_proj_;                  // [hidden, heads * head_dim]
  std::vector<float> mlp_norm_;        // [hidden]
  Projection gate_proj_;               // [inner, hidden]
  Projection up_proj_;                 // [inner, hidden]
  Projection down_proj_;               // [hidden, inner]
};

}  // namespace

std::unique_ptr<Block> make_transformer_block(const TransformerBlockDesc& desc, const WeightSource& source) {
  return std::make_unique<TransformerBlock>(desc, source);
}

}  // namespace hxq
