#include <fmt/format.h>

#include <cmath>
#include <map>

#include "desc/architectures.h"
#include "desc/mamba2.h"

namespace hxq {
namespace {

Mamba2BlockDesc describe_mamba_sizes(const ConfigReader& config, int64_t hidden) {
  Mamba2BlockDesc block;
  const int64_t inner = config.size_or("mamba_expand", 2) * hidden;
  block.heads = config.size_or("n_mamba_heads", 8);
  if (inner % block.heads != 0) config.fail("n_mamba_heads", "a divisor of mamba_expand * hidden_size");
  block.head_dim = inner / block.heads;
  block.groups = config.size_or("mamba_ngroups", 1);
  block.state_size = config.size_or("mamba_d_state", 64);
  block.conv_width = config.size_or("mamba_d_conv", 4);
  check_mamba2_sizes(config, block, "n_mamba_heads", "mamba_ngroups");
  block.gate_norm_eps = 1e-5f;  // whatever rms_norm_eps says
  read_time_step_limit(config, block);
  return block;
}

Activation activation_of(const ConfigReader& config) {
  const std::string name = config.text_or("hidden_act", "gelu");
  if (name == "gelu") return Activation::gelu;
  if (name == "silu") return Activation::silu;
  config.fail("hidden_act", "\"gelu\" or \"silu\"");
}

/// The sizes of the shared transformer, the same wherever it is used.
Zamba2BlockDesc describe_hybrid_sizes(const ConfigReader& config, int64_t hidden) {
  Zamba2BlockDesc block;
  block.heads = config.size_or("num_attention_heads", 32);
  block.kv_heads = config.size_or("num_key_value_heads", block.heads);
  if (block.heads % block.kv_heads != 0) config.fail("num_key_value_heads", "a divisor of num_attention_heads");
  if (2 * hidden % block.heads != 0) config.fail("num_attention_heads", "a divisor of 2 * hidden_size");
  block.head_dim = 2 * hidden / block.heads;
  block.mlp_inner = config.size_or("intermediate_size", 4 * hidden);
  block.adapter_rank = config.size_or("adapter_rank", 128);
  block.activation = activation_of(config);
  block.rotary = config.flag_or("use_mem_rope", false);
  if (!block.rotary) return block;
  block.rope = read_rope(config, block.head_dim);
  if (config.flag_or("use_long_context", false) && config.has("rope_theta")) {
    // As transformers 4 has it ("NTK-aware" scaling by 8); from 5 on rope_parameters say it all.
    if (block.head_dim == 2) config.fail("num_attention_heads", "fewer than hidden_size, for use_long_context");
    const auto dim = static_cast<double>(block.head_dim);
    block.rope.theta *= std::pow(8.0, dim / (dim - 2));
  }
  return block;
}

/// Which layers are hybrid.
std::vector<bool> hybrid_layers(const ConfigReader& config) {
  const std::vector<std::string> types = config.texts("layers_block_type");
  const int64_t layers = config.layer_count();
  if (static_cast<int64_t>(types.size()) != layers) {
    config.fail("layers_block_type", fmt::format("a list of num_hidden_layers = {} entries", layers));
  }
  std::vector<bool> hybrid;
  for (const std::string& type : types) {
    if (type != "hybrid" && type != "mamba" && type != "linear_attention") {
      config.fail("layers_block_type", "\"hybrid\" and \"mamba\" (or \"linear_attention\") alone");
    }
    hybrid.push_back(type == "hybrid");
  }
  return hybrid;
}

/// Adds weights layer by layer and remembers where each shared block is stored: with the first layer that uses it.
class Describer {
 public:
  Describer(const ConfigReader& config, ModelDesc& model)
      : config_(config),
        model_(model),
        mamba_(describe_mamba_sizes(config, model.hidden_size)),
        hybrid_(describe_hybrid_sizes(config, model.hidden_size)),
        shared_blocks_(config.size_or("num_mem_blocks", 1)),
        bias_(config.flag_or("add_bias_linear", false)) {}

  Mamba2BlockDesc mamba_layer(int64_t layer) { return mamba(layer_prefix(layer)); }

  Zamba2BlockDesc hybrid_layer(int64_t layer) {
    const int64_t use = uses_++;
    const int64_t shared = use % shared_blocks_;
    const auto [stored, first_use] = shared_.try_emplace(shared);
    if (first_use) {
      stored->second.prefix = layer_prefix(layer) + "shared_transformer.";
      add_shared(stored->second);
    } else {
      count_use(stored->second.block);
      model_.shared_prefixes.push_back({layer_prefix(layer) + "shared_transformer.", stored->second.prefix});
    }
    Zamba2BlockDesc block = stored->second.block;
    add_adapters(stored->second.prefix, use, block);
    const std::string prefix = layer_prefix(layer);
    block.linear = add(prefix + "linear.weight", {model_.hidden_size, model_.hidden_size});
    block.mamba = mamba(prefix + "mamba_decoder.");
    return block;
  }

  /// Tokens a sequence may have; 0: no limit.
  int64_t max_positions() const {
    return config_.flag_or("use_long_context", false) ? 16384 : context_limit(config_, hybrid_.rope);
  }

 private:
  struct Shared {
    std::string prefix;
    Zamba2BlockDesc block;
  };

  std::string layer_prefix(int64_t layer) const { return fmt::format("{}{}.", model_.layer_prefix, layer); }

  WeightId add(const std::string& name, Shape shape, Role role = Role::projection) {
    return model_.add(name, std::move(shape), role);
  }

  Mamba2BlockDesc mamba(const std::string& prefix) {
    Mamba2BlockDesc block = mamba_;
    add_mamba2_weights(model_, {.norm = prefix + "input_layernorm.weight", .mixer = prefix + "mamba.", .bias = bias_},
                       block);
    return block;
  }

  void add_shared(Shared& shared) {
    const std::string& prefix = shared.prefix;
    Zamba2BlockDesc& block = shared.block = hybrid_;
    const int64_t hidden = model_.hidden_size;
    const int64_t kv = block.kv_heads * block.head_dim;
    block.input_norm = add(prefix + "input_layernorm.weight", {2 * hidden}, Role::norm);
    block.q_proj.weight = add(prefix + "self_attn.q_proj.weight", {2 * hidden, 2 * hidden});
    block.k_proj.weight = add(prefix + "self_attn.k_proj.weight", {kv, 2 * hidden});
    block.v_proj.weight = add(prefix + "self_attn.v_proj.weight", {kv, 2 * hidden});
    block.o_proj = add(prefix + "self_attn.o_proj.weight", {hidden, 2 * hidden});
    block.mlp_norm = add(prefix + "pre_ff_layernorm.weight", {hidden}, Role::norm);
    block.gate_up_proj.weight = add(prefix + "feed_forward.gate_up_proj.weight", {2 * block.mlp_inner, hidden});
    block.down_proj = add(prefix + "feed_forward.down_proj.weight", {hidden, block.mlp_inner});
    if (bias_) {
      block.gate_up_bias = add(prefix + "feed_forward.gate_up_proj.bias", {2 * block.mlp_inner}, Role::bias);
      block.down_bias = add(prefix + "feed_forward.down_proj.bias", {hidden}, Role::bias);
    }
  }

  void count_use(const Zamba2BlockDesc& block) {
    for (const WeightId id : {block.input_norm, block.q_proj.weight, block.k_proj.weight, block.v_proj.weight,
                              block.o_proj, block.mlp_norm, block.gate_up_proj.weight, block.down_proj}) {
      ++model_.weights[static_cast<size_t>(id)].uses;
    }
  }

  /// Adapters are stored with the shared block, numbered by use among the hybrid layers.
  void add_adapters(const std::string& prefix, int64_t use, Zamba2BlockDesc& block) {
    const auto adapt = [&](AdaptedWeight& adapted, const std::string& list) {
      const Shape shape = model_.weights[static_cast<size_t>(adapted.weight)].shape;
      adapted.down = add(fmt::format("{}{}.{}.0.weight", prefix, list, use), {block.adapter_rank, shape[1]});
      adapted.up = add(fmt::format("{}{}.{}.1.weight", prefix, list, use), {shape[0], block.adapter_rank});
    };
    if (config_.flag_or("use_shared_attention_adapter", false)) {
      adapt(block.q_proj, "self_attn.linear_q_adapter_list");
      adapt(block.k_proj, "self_attn.linear_k_adapter_list");
      adapt(block.v_proj, "self_attn.linear_v_adapter_list");
    }
    // Always there: what old configurations say of them (use_shared_mlp_adapter) no loader reads.
    adapt(block.gate_up_proj, "feed_forward.gate_up_proj_adapter_list");
  }

  const ConfigReader& config_;
  ModelDesc& model_;
  Mamba2BlockDesc mamba_;   // sizes alone
  Zamba2BlockDesc hybrid_;  // sizes alone
  int64_t shared_blocks_;
  bool bias_;
  int64_t uses_ = 0;
  std::map<int64_t, Shared> shared_;
};

}  // namespace

ModelDesc describe_zamba2(const ConfigReader& config) {
  ModelDesc model;
  model.vocab_size = config.size("vocab_size");
  model.hidden_size = config.size("hidden_size");
  model.layer_prefix = "model.layers.";
  model.norm_eps = config.epsilon_or("rms_norm_eps", 1e-5);
  model.tied_head = config.flag_or("tie_word_embeddings", true);
  model.blocks_read_embedding = true;

  model.embedding = model.add("model.embed_tokens.weight", {model.vocab_size, model.hidden_size}, Role::embedding);
  Describer describer(config, model);
  const std::vector<bool> hybrid = hybrid_layers(config);
  for (size_t layer = 0; layer < hybrid.size(); ++layer) {
    const auto index = static_cast<int64_t>(layer);
    hybrid[layer] ? model.blocks.emplace_back(describer.hybrid_layer(index))
                  : model.blocks.emplace_back(describer.mamba_layer(index));
  }
  model.max_positions = describer.max_positions();
  model.final_norm = model.add("model.final_layernorm.weight", {model.hidden_size}, Role::norm);
  model.head = model.add("lm_head.weight", {model.vocab_size, model.hidden_size}, Role::head, model.tied_head);
  return model;
}

}  // namespace hxq
