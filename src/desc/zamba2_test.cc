#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "config_message.h"
#include "desc/model_desc.h"

namespace hxq {
namespace {

/// Zamba2-1.2B as published, in the spelling of transformers 4.
nlohmann::json zamba2_1b() {
  std::vector<std::string> kinds(38, "mamba");
  for (size_t layer = 5; layer < kinds.size(); layer += 6) kinds[layer] = "hybrid";
  return {{"model_type", "zamba2"},
          {"vocab_size", 32000},
          {"hidden_size", 2048},
          {"num_hidden_layers", 38},
          {"layers_block_type", kinds},
          {"mamba_d_state", 128},
          {"mamba_expand", 2},
          {"mamba_ngroups", 1},
          {"n_mamba_heads", 64},
          {"intermediate_size", 8192},
          {"num_attention_heads", 32},
          {"num_mem_blocks", 1},
          {"adapter_rank", 128},
          {"use_mem_rope", true},
          {"use_shared_attention_adapter", true},
          {"rope_theta", 10000},
          {"max_position_embeddings", 4096},
          {"tie_word_embeddings", true}};
}

bool is_projection(const WeightDesc& weight) { return weight.role == Role::projection; }

TEST(Zamba2Desc, ListsThe136ModulesOfThe1Billion) {
  const ModelDesc model = describe(zamba2_1b(), "config.json");
  EXPECT_EQ(std::ranges::count_if(model.weights, is_projection), 136);
  std::set<std::string> names;
  std::map<std::string, Shape> shapes;
  for (const WeightDesc& weight : model.weights) {
    EXPECT_TRUE(names.insert(weight.name).second) << weight.name << " is there twice";
    shapes[weight.name] = weight.shape;
  }
  const std::string shared = "model.layers.5.shared_transformer.";
  EXPECT_EQ(shapes["model.layers.0.mamba.in_proj.weight"], (Shape{8512, 2048}));
  EXPECT_EQ(shapes["model.layers.36.mamba.out_proj.weight"], (Shape{2048, 4096}));
  EXPECT_EQ(shapes["model.layers.35.linear.weight"], (Shape{2048, 2048}));
  EXPECT_EQ(shapes["model.layers.35.mamba_decoder.mamba.in_proj.weight"], (Shape{8512, 2048}));
  EXPECT_EQ(shapes[shared + "self_attn.v_proj.weight"], (Shape{4096, 4096}));
  EXPECT_EQ(shapes[shared + "self_attn.o_proj.weight"], (Shape{2048, 4096}));
  EXPECT_EQ(shapes[shared + "self_attn.linear_k_adapter_list.5.0.weight"], (Shape{128, 4096}));
  EXPECT_EQ(shapes[shared + "self_attn.linear_k_adapter_list.5.1.weight"], (Shape{4096, 128}));
  EXPECT_EQ(shapes[shared + "feed_forward.gate_up_proj.weight"], (Shape{16384, 2048}));
  EXPECT_EQ(shapes[shared + "feed_forward.down_proj.weight"], (Shape{2048, 8192}));
  EXPECT_EQ(shapes[shared + "feed_forward.gate_up_proj_adapter_list.0.1.weight"], (Shape{16384, 128}));
  // Besides: 7 exact tensors a layer, 2 norms of the shared block, embedding, final norm and the head, absent here.
  EXPECT_EQ(model.weights.size(), 136u + 38 * 7 + 2 + 3);
  EXPECT_EQ(model.max_positions, 4096);
}

TEST(Zamba2Desc, SharesBlocksInTurnAndAdaptsEachUse) {
  nlohmann::json config = zamba2_1b();
  config["num_mem_blocks"] = 2;
  const ModelDesc model = describe(config, "config.json");
  const auto hybrid = [&](size_t layer) { return std::get<Zamba2BlockDesc>(model.blocks[layer]); };
  const auto name = [&](WeightId id) { return model.weights[static_cast<size_t>(id)].name; };
  EXPECT_EQ(hybrid(5).o_proj, hybrid(17).o_proj);
  EXPECT_EQ(hybrid(11).o_proj, hybrid(35).o_proj);
  EXPECT_EQ(name(hybrid(29).q_proj.weight), "model.layers.5.shared_transformer.self_attn.q_proj.weight");
  EXPECT_EQ(name(hybrid(35).mlp_norm), "model.layers.11.shared_transformer.pre_ff_layernorm.weight");
  EXPECT_EQ(name(hybrid(29).q_proj.down),
            "model.layers.5.shared_transformer.self_attn.linear_q_adapter_list.4.0.weight");
  EXPECT_EQ(name(hybrid(35).gate_up_proj.up),
            "model.layers.11.shared_transformer.feed_forward.gate_up_proj_adapter_list.5.1.weight");
  EXPECT_NE(hybrid(5).linear, hybrid(17).linear);
  EXPECT_EQ(model.weights[static_cast<size_t>(hybrid(5).o_proj)].uses, 3);
  EXPECT_EQ(model.weights[static_cast<size_t>(hybrid(5).gate_up_proj.weight)].uses, 3);
  EXPECT_EQ(model.weights[static_cast<size_t>(hybrid(5).linear)].uses, 1);
}

TEST(Zamba2Desc, ReadsBothSpellings) {
  nlohmann::json config = zamba2_1b();
  const auto block = [&] { return std::get<Zamba2BlockDesc>(describe(config, "config.json").blocks[5]); };
  EXPECT_EQ(block().rope.theta, 10000);
  EXPECT_EQ(block().head_dim, 128);
  config["use_long_context"] = true;
  EXPECT_NEAR(block().rope.theta, 10000 * std::pow(8.0, 128.0 / 126), 1e-6);
  EXPECT_EQ(describe(config, "config.json").max_positions, 16384);

  for (nlohmann::json& kind : config["layers_block_type"]) {
    if (kind == "mamba") kind = "linear_attention";
  }
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_theta", 83000.0}, {"rope_type", "default"}};
  EXPECT_EQ(block().rope.theta, 83000);
  config["use_mem_rope"] = false;
  EXPECT_FALSE(block().rotary);
}

TEST(Zamba2Desc, SaysWhatIsWrong) {
  const auto message = [](const char* key, const nlohmann::json& value) {
    nlohmann::json config = zamba2_1b();
    config[key] = value;
    return testing::message_of(config);
  };
  EXPECT_TRUE(message("num_hidden_layers", 39).ends_with("expected a list of num_hidden_layers = 39 entries"));
  EXPECT_NE(message("layers_block_type", nlohmann::json(std::vector<std::string>(38, "attention"))), "");
  EXPECT_EQ(message("hidden_act", "relu"), "config.json: \"hidden_act\" is \"relu\", expected \"gelu\" or \"silu\"");
  EXPECT_EQ(message("n_mamba_heads", 3),
            "config.json: \"n_mamba_heads\" is 3, expected a divisor of mamba_expand * hidden_size");
}

TEST(Zamba2Desc, AnOldFieldDoesNotTakeStoredAdaptersAway) {
  nlohmann::json config = zamba2_1b();
  config["use_shared_mlp_adapter"] = false;
  EXPECT_EQ(describe(config, "config.json").weights.size(), describe(zamba2_1b(), "config.json").weights.size());
}

}  // namespace
}  // namespace hxq
