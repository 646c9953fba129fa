#include <fmt/format.h>

#include <algorithm>

#include "desc/architectures.h"

namespace hxq {
namespace {

/// Where the members of the family differ.
struct Variant {
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  std::vector<int64_t> windows = {};  ///< attention window by layer (0: none); empty: none anywhere
};

AttentionDesc describe_attention(ModelDesc& model, const ConfigReader& config, const std::string& prefix,
                                 const Variant& variant) {
  AttentionDesc attention;
  attention.heads = config.size("num_attention_heads");
  attention.kv_heads = config.size_or("num_key_value_heads", attention.heads);
  if (attention.heads % attention.kv_heads != 0) config.fail("num_key_value_heads", "a divisor of num_attention_heads");
  if (!config.has("head_dim") && model.hidden_size % attention.heads != 0) {
    config.fail("num_attention_heads", "a divisor of hidden_size, or head_dim to be given");
  }
  attention.head_dim = config.size_or("head_dim", model.hidden_size / attention.heads);
  attention.rope = read_rope(config, attention.head_dim);

  const int64_t q = attention.heads * attention.head_dim;
  const int64_t kv = attention.kv_heads * attention.head_dim;
  const auto add = [&](const char* name, Shape shape, Role role = Role::projection) {
    return model.add(prefix + name, std::move(shape), role);
  };
  attention.norm = add("input_layernorm.weight", {model.hidden_size}, Role::norm);
  attention.q_proj = add("self_attn.q_proj.weight", {q, model.hidden_size});
  attention.k_proj = add("self_attn.k_proj.weight", {kv, model.hidden_size});
  attention.v_proj = add("self_attn.v_proj.weight", {kv, model.hidden_size});
  attention.o_proj = add("self_attn.o_proj.weight", {model.hidden_size, q});
  if (variant.qkv_bias) {
    attention.q_bias = add("self_attn.q_proj.bias", {q}, Role::bias);
    attention.k_bias = add("self_attn.k_proj.bias", {kv}, Role::bias);
    attention.v_bias = add("self_attn.v_proj.bias", {kv}, Role::bias);
  }
  if (variant.o_bias) attention.o_bias = add("self_attn.o_proj.bias", {model.hidden_size}, Role::bias);
  return attention;
}

GatedMlpDesc describe_mlp(ModelDesc& model, const ConfigReader& config, const std::string& prefix, bool bias) {
  GatedMlpDesc mlp;
  mlp.inner = config.size("intermediate_size");
  const auto add = [&](const char* name, Shape shape, Role role = Role::projection) {
    return model.add(prefix + name, std::move(shape), role);
  };
  mlp.norm = add("post_attention_layernorm.weight", {model.hidden_size}, Role::norm);
  mlp.gate_proj = add("mlp.gate_proj.weight", {mlp.inner, model.hidden_size});
  mlp.up_proj = add("mlp.up_proj.weight", {mlp.inner, model.hidden_size});
  mlp.down_proj = add("mlp.down_proj.weight", {model.hidden_size, mlp.inner});
  if (bias) {
    mlp.gate_bias = add("mlp.gate_proj.bias", {mlp.inner}, Role::bias);
    mlp.up_bias = add("mlp.up_proj.bias", {mlp.inner}, Role::bias);
    mlp.down_bias = add("mlp.down_proj.bias", {model.hidden_size}, Role::bias);
  }
  return mlp;
}

/// By layer: named one by one in `layer_types` (transformers 5), or the same from `max_window_layers` on (transformers
/// 4).
std::vector<int64_t> windows_of(const ConfigReader& config) {
  std::vector<int64_t> windows(static_cast<size_t>(config.layer_count()), 0);
  const std::vector<std::string> types = config.texts("layer_types");
  if (!types.empty() && types.size() != windows.size()) config.fail("layer_types", "one entry for each layer");
  for (const std::string& type : types) {
    if (type != "full_attention" && type != "sliding_attention") {
      config.fail("layer_types", "\"full_attention\" and \"sliding_attention\" alone");
    }
  }
  if (!config.flag_or("use_sliding_window", false) || !config.has("sliding_window")) return windows;
  const auto first = static_cast<size_t>(config.count_or("max_window_layers", 28));
  for (size_t layer = 0; layer < windows.size(); ++layer) {
    const bool slides = types.empty() ? layer >= first : types[layer] == "sliding_attention";
    if (slides) windows[layer] = config.size("sliding_window");
  }
  return windows;
}

ModelDesc describe_decoder(const ConfigReader& config, const Variant& variant) {
  ModelDesc model;
  model.vocab_size = config.size("vocab_size");
  model.hidden_size = config.size("hidden_size");
  model.layer_prefix = "model.layers.";
  model.norm_eps = config.epsilon_or("rms_norm_eps", 1e-6);
  model.tied_head = config.flag_or("tie_word_embeddings", false);
  if (config.text_or("hidden_act", "silu") != "silu") config.fail("hidden_act", "\"silu\"");

  model.embedding = model.add("model.embed_tokens.weight", {model.vocab_size, model.hidden_size}, Role::embedding);
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) {
    const std::string prefix = fmt::format("{}{}.", model.layer_prefix, layer);
    TransformerBlockDesc block;
    block.attention = describe_attention(model, config, prefix, variant);
    if (!variant.windows.empty()) block.attention.window = variant.windows[static_cast<size_t>(layer)];
    block.mlp = describe_mlp(model, config, prefix, variant.mlp_bias);
    model.max_positions = context_limit(config, block.attention.rope);
    model.blocks.emplace_back(block);
  }
  model.final_norm = model.add("model.norm.weight", {model.hidden_size}, Role::norm);
  model.head = model.add("lm_head.weight", {model.vocab_size, model.hidden_size}, Role::head, model.tied_head);
  return model;
}

}  // namespace

ModelDesc describe_llama(const ConfigReader& config) {
  const bool attention_bias = config.flag_or("attention_bias", false);
  return describe_decoder(
      config, {.qkv_bias = attention_bias, .o_bias = attention_bias, .mlp_bias = config.flag_or("mlp_bias", false)});
}

ModelDesc describe_qwen2(const ConfigReader& config) {
  return describe_decoder(config, {.qkv_bias = true, .windows = windows_of(config)});
}

}  // namespace hxq
