#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "config_message.h"
#include "desc/model_desc.h"
#include "io/json.h"

namespace hxq {
namespace {

using testing::message_of;

nlohmann::json mamba2_130m() {
  return {{"model_type", "mamba2"},
          {"vocab_size", 50288},
          {"hidden_size", 768},
          {"num_hidden_layers", 24},
          {"num_heads", 24},
          {"head_dim", 64},
          {"n_groups", 1},
          {"state_size", 128},
          {"expand", 2},
          {"conv_kernel", 4},
          {"tie_word_embeddings", true}};
}

const Mamba2BlockDesc& first_block(const ModelDesc& model) { return std::get<Mamba2BlockDesc>(model.blocks.front()); }

TEST(Mamba2Desc, ListsTheTensorsOfMamba2130m) {
  const ModelDesc model = describe(mamba2_130m(), "config.json");
  // 9 tensors a layer, embedding, final norm; the tied head is the one more that may be absent.
  EXPECT_EQ(model.weights.size(), 24u * 9 + 3);
  EXPECT_EQ(model.blocks.size(), 24u);
  EXPECT_TRUE(model.weights[model.head].optional);
  int64_t parameters = 0;
  for (const WeightDesc& weight : model.weights) parameters += weight.optional ? 0 : element_count(weight.shape);
  EXPECT_EQ(parameters, 128989632);
  const Mamba2BlockDesc& block = first_block(model);
  EXPECT_EQ(model.weights[block.in_proj].name, "backbone.layers.0.mixer.in_proj.weight");
  EXPECT_EQ(model.weights[block.in_proj].shape, (Shape{3352, 768}));
  EXPECT_EQ(model.weights[block.conv_weight].shape, (Shape{1792, 1, 4}));
  EXPECT_EQ(model.weights[block.a_log].name, "backbone.layers.0.mixer.A_log");
  EXPECT_EQ(model.weights[block.dt_bias].role, Role::ssm_parameter);
}

TEST(Mamba2Desc, ReadsTheTimeStepLimitInEverySpelling) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  nlohmann::json config = mamba2_130m();
  const auto limit = [&] {
    const ModelDesc model = describe(config, "config.json");
    return std::pair(first_block(model).dt_min, first_block(model).dt_max);
  };
  EXPECT_EQ(limit(), std::pair(0.0f, kInfinity));
  config["time_step_limit"] = nullptr;
  config["time_step_min"] = 0.001;  // says nothing about the bounds
  EXPECT_EQ(limit(), std::pair(0.0f, kInfinity));
  config["time_step_limit"] = parse_json("[0.0, Infinity]", "config.json");
  EXPECT_EQ(limit(), std::pair(0.0f, kInfinity));
  config["time_step_limit"] = parse_json(R"([0.0, {"__float__": "Infinity"}])", "config.json");
  EXPECT_EQ(limit(), std::pair(0.0f, kInfinity));
  config["time_step_limit"] = {0.25, 0.5};
  EXPECT_EQ(limit(), std::pair(0.25f, 0.5f));
  for (const char* bad : {"[0.0]", "[0.5, 0.25]", "[-1.0, 1.0]", "[NaN, 1.0]", "0.5", R"([0.0, "Infinity"])"}) {
    config["time_step_limit"] = parse_json(bad, "config.json");
    EXPECT_NE(message_of(config), "") << bad;
  }
}

TEST(Mamba2Desc, RefusesSizesThatDoNotFit) {
  nlohmann::json config = mamba2_130m();
  config["num_heads"] = 25;
  EXPECT_EQ(message_of(config),
            "config.json: \"num_heads\" is 25, expected expand * hidden_size / head_dim, where head_dim is 64");
  config = mamba2_130m();
  config["n_groups"] = 5;
  EXPECT_EQ(message_of(config), "config.json: \"n_groups\" is 5, expected a divisor of num_heads");
  config = mamba2_130m();
  config["state_size"] = 2147483647;
  EXPECT_EQ(message_of(config), "config.json: \"num_heads\" is 24, expected sizes that multiply to less than 2^31");
}

}  // namespace
}  // namespace hxq
