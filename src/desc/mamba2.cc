#include "desc/mamba2.h"

#include <fmt/format.h>

#include <limits>

#include "desc/architectures.h"

namespace hxq {
namespace {

/// The sizes, the same for all layers.
Mamba2BlockDesc describe_sizes(const ConfigReader& config, int64_t hidden) {
  Mamba2BlockDesc block;
  block.heads = config.size_or("num_heads", 128);
  block.head_dim = config.size_or("head_dim", 64);
  block.groups = config.size_or("n_groups", 8);
  block.state_size = config.size_or("state_size", 128);
  block.conv_width = config.size_or("conv_kernel", 4);
  check_mamba2_sizes(config, block, "num_heads", "n_groups");
  if (block.inner() != config.size_or("expand", 2) * hidden) {
    config.fail("num_heads", fmt::format("expand * hidden_size / head_dim, where head_dim is {}", block.head_dim));
  }
  block.gate_norm_eps = config.epsilon_or("layer_norm_epsilon", 1e-5);
  read_time_step_limit(config, block);
  return block;
}

}  // namespace

void check_mamba2_sizes(const ConfigReader& config, const Mamba2BlockDesc& block, const char* heads_key,
                        const char* groups_key) {
  if (block.heads % block.groups != 0) config.fail(groups_key, fmt::format("a divisor of {}", heads_key));
  const auto heads = static_cast<double>(block.heads);
  const double width = heads * (2 * static_cast<double>(block.head_dim) + 1) +
                       2 * static_cast<double>(block.groups) * static_cast<double>(block.state_size);
  if (width > std::numeric_limits<int32_t>::max()) config.fail(heads_key, "sizes that multiply to less than 2^31");
}

void add_mamba2_weights(ModelDesc& model, const Mamba2Layout& layout, Mamba2BlockDesc& block) {
  const auto add = [&](const char* name, Shape shape, Role role) {
    return model.add(layout.mixer + name, std::move(shape), role);
  };
  const int64_t hidden = model.hidden_size;
  block.norm = model.add(layout.norm, {hidden}, Role::norm);
  block.in_proj = add("in_proj.weight", {block.projected(), hidden}, Role::projection);
  block.conv_weight = add("conv1d.weight", {block.conv_channels(), 1, block.conv_width}, Role::conv);
  if (layout.conv_bias) block.conv_bias = add("conv1d.bias", {block.conv_channels()}, Role::conv);
  block.dt_bias = add("dt_bias", {block.heads}, Role::ssm_parameter);
  block.a_log = add("A_log", {block.heads}, Role::ssm_parameter);
  block.d = add("D", {block.heads}, Role::ssm_parameter);
  block.gate_norm = add("norm.weight", {block.inner()}, Role::norm);
  block.out_proj = add("out_proj.weight", {hidden, block.inner()}, Role::projection);
  if (layout.bias) {
    block.in_proj_bias = add("in_proj.bias", {block.projected()}, Role::bias);
    block.out_proj_bias = add("out_proj.bias", {hidden}, Role::bias);
  }
}

void read_time_step_limit(const ConfigReader& config, Mamba2BlockDesc& block) {
  block.dt_min = 0;
  block.dt_max = std::numeric_limits<float>::infinity();
  if (!config.has("time_step_limit")) return;
  const std::vector<double> limit = config.numbers("time_step_limit");
  if (limit.size() != 2 || !(limit[0] >= 0) || !(limit[1] >= limit[0])) {
    config.fail("time_step_limit", "the least and the greatest time step");
  }
  block.dt_min = static_cast<float>(limit[0]);
  block.dt_max = static_cast<float>(limit[1]);
}

ModelDesc describe_mamba2(const ConfigReader& config) {
  ModelDesc model;
  model.vocab_size = config.size("vocab_size");
  model.hidden_size = config.size("hidden_size");
  model.layer_prefix = "backbone.layers.";
  model.norm_eps = config.epsilon_or("layer_norm_epsilon", 1e-5);
  model.tied_head = config.flag_or("tie_word_embeddings", false);
  if (config.text_or("hidden_act", "silu") != "silu") config.fail("hidden_act", "\"silu\"");

  const Mamba2BlockDesc sizes = describe_sizes(config, model.hidden_size);
  model.embedding = model.add("backbone.embeddings.weight", {model.vocab_size, model.hidden_size}, Role::embedding);
  const int64_t layers = config.layer_count();
  for (int64_t layer = 0; layer < layers; ++layer) {
    const std::string prefix = fmt::format("{}{}.", model.layer_prefix, layer);
    Mamba2BlockDesc block = sizes;
    add_mamba2_weights(model,
                       {.norm = prefix + "norm.weight",
                        .mixer = prefix + "mixer.",
                        .bias = config.flag_or("use_bias", false),
                        .conv_bias = config.flag_or("use_conv_bias", true)},
                       block);
    model.blocks.emplace_back(block);
  }
  model.final_norm = model.add("backbone.norm_f.weight", {model.hidden_size}, Role::norm);
  model.head = model.add("lm_head.weight", {model.vocab_size, model.hidden_size}, Role::head, model.tied_head);
  return model;
}

}  // namespace hxq
