#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "config_message.h"
#include "desc/model_desc.h"

namespace hxq {
namespace {

using testing::message_of;

nlohmann::json mamba_130m() {
  return {{"model_type", "mamba"}, {"vocab_size", 50280}, {"hidden_size", 768},        {"num_hidden_layers", 24},
          {"state_size", 16},      {"expand", 2},         {"intermediate_size", 1536}, {"time_step_rank", 48},
          {"conv_kernel", 4},      {"eos_token_id", 0}};
}

TEST(MambaDesc, ListsTheTensorsOfMamba130m) {
  const ModelDesc model = describe(mamba_130m(), "config.json");
  // The published checkpoint has 242 tensors; the tied head is the one more that may be absent.
  EXPECT_EQ(model.weights.size(), 243u);
  EXPECT_EQ(model.blocks.size(), 24u);
  EXPECT_TRUE(model.weights[model.head].optional);
  int64_t parameters = 0;
  for (const WeightDesc& weight : model.weights) parameters += weight.optional ? 0 : element_count(weight.shape);
  EXPECT_EQ(parameters, 129135360);
  const auto& block = std::get<MambaBlockDesc>(model.blocks[3]);
  EXPECT_EQ(model.weights[block.x_proj].name, "backbone.layers.3.mixer.x_proj.weight");
  EXPECT_EQ(model.weights[block.x_proj].shape, (Shape{80, 1536}));
  EXPECT_EQ(model.weights[block.a_log].role, Role::ssm_parameter);
  EXPECT_EQ(model.eos_tokens, (std::vector<int32_t>{0}));
}

TEST(MambaDesc, TakesDefaultsAndTheWordAuto) {
  nlohmann::json config = mamba_130m();
  config.erase("intermediate_size");
  config["time_step_rank"] = "auto";
  const ModelDesc model = describe(config, "config.json");
  const auto& block = std::get<MambaBlockDesc>(model.blocks[0]);
  EXPECT_EQ(block.inner, 1536);
  EXPECT_EQ(block.dt_rank, 48);
}

TEST(MambaDesc, SaysWhichFieldIsWrong) {
  nlohmann::json config = mamba_130m();
  config["vocab_size"] = "many";
  EXPECT_EQ(message_of(config), "config.json: \"vocab_size\" is \"many\", expected a positive integer");
  config = mamba_130m();
  config.erase("num_hidden_layers");
  EXPECT_EQ(message_of(config), "config.json: \"num_hidden_layers\" is nothing, expected a positive integer");
  config = mamba_130m();
  config["num_hidden_layers"] = 2'000'000'000;
  EXPECT_EQ(message_of(config), "config.json: \"num_hidden_layers\" is 2000000000, expected at most 10000");
  config = mamba_130m();
  config.erase("intermediate_size");
  config["expand"] = 2'000'000'000;
  EXPECT_EQ(message_of(config), "config.json: \"expand\" is 2000000000, expected a width of less than 2^31");
  config = mamba_130m();
  config["model_type"] = "bert";
  const std::string message = message_of(config);
  EXPECT_TRUE(message.starts_with("config.json: \"model_type\" is \"bert\", expected one that is known here: "));
  EXPECT_NE(message.find("mamba"), message.npos);
}

}  // namespace
}  // namespace hxq
