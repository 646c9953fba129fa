#include "layers/zamba2_block.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/attention.h"
#include "layers/mamba2_block.h"
#include "layers/projection.h"

namespace hxq {
namespace {

struct Zamba2State final : BlockState {
  Zamba2State(const Zamba2BlockDesc& desc, const StateOptions& options, Mamba2Mixer::State fresh)
      : rope(desc.rope), cache(desc.kv_heads, desc.head_dim, options.kv_cache), mixer(std::move(fresh)) {
    if (desc.rotary) inverse_frequency = inverse_frequencies(rope, 0);
  }

  /// What the cache holds past the position is never looked at.
  void reset() override { mixer.reset(); }

  void prepare(const TokenRange& range) override {
    cache.reserve(range.position + range.tokens);
    if (rope.type == RopeDesc::Type::dynamic) inverse_frequency = inverse_frequencies(rope, range.end);
  }

  RopeDesc rope;
  kernels::KvCache cache;
  std::vector<float> inverse_frequency;  // [head_dim / 2], empty without rotary positions
  Mamba2Mixer::State mixer;
};

/// A shared weight with a layer's own low-rank term.
class AdaptedProjection {
 public:
  AdaptedProjection(const WeightSource& source, const AdaptedWeight& weight, WeightId bias, int64_t rank)
      : shared_(source, weight.weight, bias), rank_(rank) {
    if (weight.down == kNoWeight) return;
    down_.emplace(source, weight.down);
    up_.emplace(source, weight.up);
  }

  /// y = W x + bias + up (down x). low: [tokens, rank].
  void operator()(const kernels::LinearArgs& args, float* low, const kernels::Context& context) const noexcept {
    shared_(args, context);
    if (!down_) return;
    (*down_)({.x = args.x, .x_stride = args.x_stride, .y = low, .y_stride = rank_, .tokens = args.tokens}, context);
    (*up_)({.x = low,
            .x_stride = rank_,
            .y = args.y,
            .y_stride = args.y_stride,
            .tokens = args.tokens,
            .accumulate = true},
           context);
  }

 private:
  Projection shared_;  // [out, in]
  int64_t rank_;
  std::optional<Projection> down_;  // [rank, in]
  std::optional<Projection> up_;    // [out, rank]
};

class Zamba2Block final : public Block {
 public:
  Zamba2Block(const Zamba2BlockDesc& desc, const WeightSource& source)
      : desc_(desc),
        hidden_(source.model.hidden_size),
        norm_eps_(source.model.norm_eps),
        input_norm_(source.vector(desc.input_norm)),
        q_proj_(source, desc.q_proj, kNoWeight, desc.adapter_rank),
        k_proj_(source, desc.k_proj, kNoWeight, desc.adapter_rank),
        v_proj_(source, desc.v_proj, kNoWeight, desc.adapter_rank),
        o_proj_(source, desc.o_proj),
        mlp_norm_(source.vector(desc.mlp_norm)),
        gate_up_proj_(source, desc.gate_up_proj, desc.gate_up_bias, desc.adapter_rank),
        down_proj_(source, desc.down_proj, desc.down_bias),
        linear_(source, desc.linear),
        mixer_(desc.mamba, source) {}

  std::unique_ptr<BlockState> new_state(const StateOptions& options) const override {
    return std::make_unique<Zamba2State>(desc_, options, mixer_.new_state());
  }

  int64_t work_size(int64_t tokens) const override {
    const int64_t attention = 2 * hidden_ + 2 * q_size() + 2 * kv_size() + desc_.adapter_rank + desc_.head_dim;
    const int64_t mlp = 2 * desc_.mlp_inner + desc_.adapter_rank;
    return tokens * 2 * hidden_ + std::max(tokens * std::max(attention, mlp), mixer_.work_size(tokens));
  }

  void forward(const BlockArgs& args, BlockState& block_state,
               const kernels::Context& context) const noexcept override {
    auto& state = static_cast<Zamba2State&>(block_state);
    const int64_t tokens = args.tokens;
    float* sum = args.work;                        // [tokens, hidden]: the mixer's input
    float* transformed = sum + tokens * hidden_;   // [tokens, hidden]
    float* work = transformed + tokens * hidden_;  // of one part after the other

    attend(args, state, sum, transformed, work, context);
    feed_forward(transformed, tokens, work, context);
    linear_(
        {.x = transformed, .x_stride = hidden_, .y = sum, .y_stride = hidden_, .tokens = tokens, .accumulate = true},
        context);
    mixer_.add(sum, args.x, tokens, work, state.mixer, context);
  }

 private:
  int64_t q_size() const noexcept { return desc_.heads * desc_.head_dim; }
  int64_t kv_size() const noexcept { return desc_.kv_heads * desc_.head_dim; }

  /// out = attention(norm([x, embedding])), and sum = x.
  void attend(const BlockArgs& args, Zamba2State& state, float* sum, float* out, float* work,
              const kernels::Context& context) const noexcept {
    const int64_t tokens = args.tokens;
    float* both = work;                                // [tokens, 2 * hidden]: x, embedding
    float* q = both + tokens * 2 * hidden_;            // [tokens, heads, head_dim]
    float* k = q + tokens * q_size();                  // [tokens, kv_heads, head_dim]
    float* v = k + tokens * kv_size();                 // [tokens, kv_heads, head_dim]
    float* attended = v + tokens * kv_size();          // [tokens, heads, head_dim]
    float* low = attended + tokens * q_size();         // [tokens, adapter_rank]
    float* table = low + tokens * desc_.adapter_rank;  // [tokens, 2, head_dim / 2]

    const Range mine = context.team.share(tokens);
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      std::copy_n(args.x + t * hidden_, hidden_, sum + t * hidden_);
      std::copy_n(args.x + t * hidden_, hidden_, both + t * 2 * hidden_);
      std::copy_n(args.embedding + t * hidden_, hidden_, both + t * 2 * hidden_ + hidden_);
    }
    if (desc_.rotary) {
      kernels::rotary_table({.inverse_frequency = state.inverse_frequency.data(),
                             .half = desc_.head_dim / 2,
                             .position = args.position,
                             .tokens = tokens,
                             .table = table},
                            context);
    }
    context.team.barrier();
    norm(both, input_norm_, tokens, 2 * hidden_, context);
    const auto project = [&](const AdaptedProjection& projection, float* y, int64_t size) {
      projection({.x = both, .x_stride = 2 * hidden_, .y = y, .y_stride = size, .tokens = tokens}, low, context);
    };
    project(q_proj_, q, q_size());
    project(k_proj_, k, kv_size());
    project(v_proj_, v, kv_size());
    const kernels::KvCacheView cache = state.cache.view();
    kernels::extend_cache({.q = q,
                           .k = k,
                           .v = v,
                           .q_stride = q_size(),
                           .kv_stride = kv_size(),
                           .query_heads = desc_.heads,
                           .rotary_table = desc_.rotary ? table : nullptr,
                           .position = args.position,
                           .tokens = tokens,
                           .cache = cache},
                          context);
    // Half of a head's width counts: the other half came with the embedding.
    const float scale = 1.0f / std::sqrt(static_cast<float>(desc_.head_dim) / 2);
    kernels::attention({.q = q,
                        .q_stride = q_size(),
                        .y = attended,
                        .y_stride = q_size(),
                        .query_heads = desc_.heads,
                        .scale = scale,
                        .position = args.position,
                        .tokens = tokens,
                        .cache = cache},
                       context);
    o_proj_({.x = attended, .x_stride = q_size(), .y = out, .y_stride = hidden_, .tokens = tokens}, context);
  }

  /// x = mlp(norm(x)).
  void feed_forward(float* x, int64_t tokens, float* work, const kernels::Context& context) const noexcept {
    const int64_t inner = desc_.mlp_inner;
    float* gate = work;                      // [tokens, 2 * inner]: gate, then up
    float* low = gate + tokens * 2 * inner;  // [tokens, adapter_rank]
    norm(x, mlp_norm_, tokens, hidden_, context);
    gate_up_proj_({.x = x, .x_stride = hidden_, .y = gate, .y_stride = 2 * inner, .tokens = tokens}, low, context);
    kernels::gated_activation({.gate = gate,
                               .up = gate + inner,
                               .x_stride = 2 * inner,
                               .y = gate,
                               .y_stride = 2 * inner,
                               .tokens = tokens,
                               .dim = inner,
                               .activation = desc_.activation},
                              context);
    down_proj_({.x = gate, .x_stride = 2 * inner, .y = x, .y_stride = hidden_, .tokens = tokens}, context);
  }

  void norm(float* x, const std::vector<float>& weight, int64_t tokens, int64_t dim,
            const kernels::Context& context) const noexcept {
    kernels::rms_norm({.x = x, .weight = weight.data(), .y = x, .tokens = tokens, .dim = dim, .eps = norm_eps_},
                      context);
  }

  Zamba2BlockDesc desc_;
  int64_t hidden_;
  float norm_eps_;
  std::vector<float> input_norm_;   // [2 * hidden]
  AdaptedProjection q_proj_;        // [heads * head_dim, 2 * hidden]
  AdaptedProjection k_proj_;        // [kv_heads * head_dim, 2 * hidden]
  AdaptedProjection v_proj_;        // [kv_heads * head_dim, 2 * hidden]
  Projection o_proj_;               // [hidden, heads * head_dim]
  std::vector<float> mlp_norm_;     // [hidden]
  AdaptedProjection gate_up_proj_;  // [2 * mlp_inner, hidden]
  Projection down_proj_;            // [hidden, mlp_inner]
  Projection linear_;               // [hidden, hidden]
  Mamba2Mixer mixer_;
};

}  // namespace

std::unique_ptr<Block> make_zamba2_block(const Zamba2BlockDesc& desc, const WeightSource& source) {
  return std::make_unique<Zamba2Block>(desc, source);
}

}  // namespace hxq
