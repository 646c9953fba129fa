#include <fmt/format.h>

#include <limits>

#include "desc/architectures.h"

namespace hxq {
namespace {

int64_t dt_rank_of(const ConfigReader& config, int64_t hidden) {
  // "auto" is how the original release writes the default.
  const int64_t automatic = (hidden + 15) / 16;
  return config.is_text("time_step_rank", "auto") ? automatic : config.size_or("time_step_rank", automatic);
}

MambaBlockDesc describe_block(ModelDesc& model, const ConfigReader& config, int64_t layer) {
  const int64_t hidden = model.hidden_size;
  MambaBlockDesc block;
  block.inner = config.size_or("intermediate_size", config.size_or("expand", 2) * hidden);
  if (block.inner > std::numeric_limits<int32_t>::max()) config.fail("expand", "a width of less than 2^31");
  block.state_size = config.size_or("state_size", 16);
  block.conv_width = config.size_or("conv_kernel", 4);
  block.dt_rank = dt_rank_of(config, hidden);

  const std::string prefix = fmt::format("{}{}.", model.layer_prefix, layer);
  const auto add = [&](const char* name, Shape shape, Role role) {
    return model.add(prefix + name, std::move(shape), role);
  };
  block.norm = add("norm.weight", {hidden}, Role::norm);
  block.in_proj = add("mixer.in_proj.weight", {2 * block.inner, hidden}, Role::projection);
  block.conv_weight = add("mixer.conv1d.weight", {block.inner, 1, block.conv_width}, Role::conv);
  if (config.flag_or("use_conv_bias", true)) block.conv_bias = add("mixer.conv1d.bias", {block.inner}, Role::conv);
  block.x_proj = add("mixer.x_proj.weight", {block.dt_rank + 2 * block.state_size, block.inner}, Role::projection);
  block.dt_proj = add("mixer.dt_proj.weight", {block.inner, block.dt_rank}, Role::projection);
  block.dt_bias = add("mixer.dt_proj.bias", {block.inner}, Role::ssm_parameter);
  block.a_log = add("mixer.A_log", {block.inner, block.state_size}, Role::ssm_parameter);
  block.d = add("mixer.D", {block.inner}, Role::ssm_parameter);
  block.out_proj = add("mixer.out_proj.weight", {hidden, block.inner}, Role::projection);
  if (config.flag_or("use_bias", false)) {
    block.in_proj_bias = add("mixer.in_proj.bias", {2 * block.inner}, Role::bias);
    block.out_proj_bias = add("mixer.out_proj.bias", {hidden}, Role::bias);
  }
  return block;
}

}  // namespace

ModelDesc describe_mamba(const ConfigReader& config) {
  ModelDesc model;
  model.vocab_size = config.size("vocab_size");
  model.hidden_size = config.size("hidden_size");
  model.layer_prefix = "backbone.layers.";
  model.norm_eps = config.epsilon_or("layer_norm_epsilon", 1e-5);
  model.tied_head = config.flag_or("tie_word_embeddings", true);
  if (const std::string act = config.text_or("hidden_act", "silu"); act != "silu")
    config.fail("hidden_act", "\"silu\"");

  model.embedding = model.add("backbone.embeddings.weight", {model.vocab_size, model.hidden_size}, Role::embedding);
  const int64_t layers = config.layer_count();
  for (int64_t layer = 0; layer < layers; ++layer) model.blocks.emplace_back(describe_block(model, config, layer));
  model.final_norm = model.add("backbone.norm_f.weight", {model.hidden_size}, Role::norm);
  model.head = model.add("lm_head.weight", {model.vocab_size, model.hidden_size}, Role::head, model.tied_head);
  return model;
}

}  // namespace hxq
