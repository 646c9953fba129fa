#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "config_message.h"
#include "desc/model_desc.h"

namespace hxq {
namespace {

using nlohmann::json;
using testing::message_of;

json tiny_llama() {
  return {{"model_type", "llama"},     {"vocab_size", 32000},       {"hidden_size", 2048},
          {"num_hidden_layers", 22},   {"intermediate_size", 5632}, {"num_attention_heads", 32},
          {"num_key_value_heads", 4},  {"hidden_act", "silu"},      {"max_position_embeddings", 2048},
          {"rms_norm_eps", 1e-5},      {"rope_scaling", nullptr},   {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"}, {"eos_token_id", 2},         {"bos_token_id", 1}};
}

json qwen2_half_billion() {
  return {{"model_type", "qwen2"},
          {"vocab_size", 151936},
          {"hidden_size", 896},
          {"num_hidden_layers", 24},
          {"intermediate_size", 4864},
          {"num_attention_heads", 14},
          {"num_key_value_heads", 2},
          {"hidden_act", "silu"},
          {"max_position_embeddings", 32768},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1000000.0},
          {"tie_word_embeddings", true},
          {"use_sliding_window", false},
          {"sliding_window", 32768},
          {"max_window_layers", 21},
          {"eos_token_id", {151645, 151643}}};
}

int64_t parameters_of(const ModelDesc& model) {
  int64_t parameters = 0;
  for (const WeightDesc& weight : model.weights) parameters += weight.optional ? 0 : element_count(weight.shape);
  return parameters;
}

const TransformerBlockDesc& block_of(const ModelDesc& model, size_t layer) {
  return std::get<TransformerBlockDesc>(model.blocks[layer]);
}

const WeightDesc& weight_of(const ModelDesc& model, WeightId id) { return model.weights[static_cast<size_t>(id)]; }

TEST(LlamaDesc, ListsTheTensorsOfTinyLlama) {
  const ModelDesc model = describe(tiny_llama(), "config.json");
  EXPECT_EQ(model.weights.size(), 201u);
  EXPECT_EQ(parameters_of(model), 1100048384);  // as published
  EXPECT_EQ(model.max_positions, 2048);
  EXPECT_EQ(model.norm_eps, 1e-5f);
  EXPECT_FALSE(weight_of(model, model.head).optional);
  const AttentionDesc& attention = block_of(model, 21).attention;
  EXPECT_EQ(attention.head_dim, 64);
  EXPECT_EQ(weight_of(model, attention.k_proj).name, "model.layers.21.self_attn.k_proj.weight");
  EXPECT_EQ(weight_of(model, attention.k_proj).shape, (Shape{256, 2048}));
  EXPECT_EQ(attention.q_bias, kNoWeight);
  EXPECT_EQ(attention.rope.theta, 10000);
}

TEST(LlamaDesc, TakesDefaultsBiasesAndAHeadDimension) {
  json config = tiny_llama();
  config.erase("num_key_value_heads");
  config.erase("tie_word_embeddings");
  config["head_dim"] = 128;
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  const ModelDesc model = describe(config, "config.json");
  const TransformerBlockDesc& block = block_of(model, 0);
  EXPECT_EQ(weight_of(model, block.attention.k_proj).shape, (Shape{32 * 128, 2048}));
  EXPECT_EQ(weight_of(model, block.attention.o_proj).shape, (Shape{2048, 32 * 128}));
  EXPECT_EQ(weight_of(model, block.attention.o_bias).shape, (Shape{2048}));
  EXPECT_EQ(weight_of(model, block.attention.v_bias).shape, (Shape{32 * 128}));
  EXPECT_EQ(weight_of(model, block.mlp.gate_bias).role, Role::bias);
  EXPECT_FALSE(model.tied_head);
}

TEST(LlamaDesc, StretchesTheContextWhereTheScalingDoes) {
  json config = tiny_llama();
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};
  EXPECT_EQ(describe(config, "config.json").max_positions, 5120);
  config.erase("max_position_embeddings");
  EXPECT_EQ(describe(config, "config.json").max_positions, 0);
}

TEST(LlamaDesc, SaysWhichFieldIsWrong) {
  json config = tiny_llama();
  config["hidden_act"] = "relu";
  EXPECT_EQ(message_of(config), "config.json: \"hidden_act\" is \"relu\", expected \"silu\"");
  config = tiny_llama();
  config["num_key_value_heads"] = 5;
  EXPECT_EQ(message_of(config), "config.json: \"num_key_value_heads\" is 5, expected a divisor of num_attention_heads");
  for (const char* epsilon : {"-1.0", "1e+300"}) {
    config = tiny_llama();
    config["rms_norm_eps"] = json::parse(epsilon);
    EXPECT_EQ(message_of(config),
              std::string("config.json: \"rms_norm_eps\" is ") + epsilon + ", expected a small number, not negative");
  }
  config = tiny_llama();
  config["num_hidden_layers"] = 2000000000;
  EXPECT_EQ(message_of(config), "config.json: \"num_hidden_layers\" is 2000000000, expected at most 10000");
  config = tiny_llama();
  config["num_attention_heads"] = 36;
  EXPECT_NE(message_of(config), "");
}

TEST(Qwen2Desc, ListsTheTensorsOfTheSmallest) {
  const ModelDesc model = describe(qwen2_half_billion(), "config.json");
  EXPECT_EQ(model.weights.size(), 291u);  // 290 in the published checkpoint, and the tied head
  EXPECT_EQ(parameters_of(model), 494032768);
  EXPECT_TRUE(weight_of(model, model.head).optional);
  const AttentionDesc& attention = block_of(model, 23).attention;
  EXPECT_EQ(weight_of(model, attention.k_bias).shape, (Shape{128}));
  EXPECT_EQ(attention.o_bias, kNoWeight);
  EXPECT_EQ(attention.window, 0);
  EXPECT_EQ(model.eos_tokens, (std::vector<int32_t>{151645, 151643}));
}

TEST(Qwen2Desc, SlidesFromALayerOnOrLayerByLayer) {
  json config = qwen2_half_billion();
  config["use_sliding_window"] = true;
  config["sliding_window"] = 4096;
  ModelDesc model = describe(config, "config.json");
  EXPECT_EQ(block_of(model, 20).attention.window, 0);
  EXPECT_EQ(block_of(model, 21).attention.window, 4096);
  config["max_window_layers"] = 0;
  EXPECT_EQ(block_of(describe(config, "config.json"), 0).attention.window, 4096);

  std::vector<std::string> types(24, "full_attention");
  types[3] = "sliding_attention";
  config["layer_types"] = types;
  model = describe(config, "config.json");
  EXPECT_EQ(block_of(model, 3).attention.window, 4096);
  EXPECT_EQ(block_of(model, 23).attention.window, 0);
  config["use_sliding_window"] = false;
  EXPECT_EQ(block_of(describe(config, "config.json"), 3).attention.window, 0);

  types.pop_back();
  config["layer_types"] = types;
  EXPECT_NE(message_of(config), "");
  config["layer_types"] = std::vector<std::string>(24, "chunked_attention");
  EXPECT_NE(message_of(config).find("layer_types"), std::string::npos);
}

}  // namespace
}  // namespace hxq
