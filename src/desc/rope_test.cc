#include "desc/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "desc/config_reader.h"
#include "hxq/error.h"
#include "refusal.h"

namespace hxq {
namespace {

using nlohmann::json;

RopeDesc read(const json& config, int64_t head_dim = 64) {
  return read_rope(ConfigReader(config, "config.json"), head_dim);
}

std::string message_of_rope(const json& config) {
  return testing::refusal([&] { read(config); });
}

/// Values at kPlaces of what transformers 5.23 computes: ROPE_INIT_FUNCTIONS[type](LlamaConfig(...), "cpu", seq_len).
constexpr size_t kPlaces[] = {0, 1, 5, 10, 15, 16, 17, 18, 20, 25, 31};

void expect_frequencies(const RopeDesc& rope, int64_t length, const std::vector<float>& expected) {
  const std::vector<float> got = inverse_frequencies(rope, length);
  ASSERT_EQ(got.size(), 32u);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(got[kPlaces[i]], expected[i], 4e-7f * expected[i]) << "frequency " << kPlaces[i];
  }
}

TEST(Rope, DefaultInBothSpellings) {
  const std::vector<float> expected = {
      1.0f,           0.663601279f,    0.128687382f,    0.0165604409f,   0.0021311196f,
      0.00141421345f, 0.000938473851f, 0.000622772437f, 0.000274248188f, 3.52922762e-05f,
      3.01385808e-06f};
  expect_frequencies(read({{"rope_theta", 500000.0}}), 0, expected);
  expect_frequencies(read({{"rope_theta", 500000}, {"rope_scaling", nullptr}}), 0, expected);
  expect_frequencies(read({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 500000.0}}}}), 0, expected);
  EXPECT_EQ(read(json::object()).theta, 10000);
}

TEST(Rope, LinearInBothSpellings) {
  const std::vector<float> expected = {0.25f,           0.18747355f,     0.0592843406f,  0.0140585322f,
                                       0.00333380373f,  0.00249999994f,  0.00187473558f, 0.00140585331f,
                                       0.000790569466f, 0.000187473546f, 3.33380376e-05f};
  const json old = {{"rope_theta", 10000.0},
                    {"max_position_embeddings", 2048},
                    {"rope_scaling", {{"type", "linear"}, {"factor", 4}}}};
  const json current = {{"max_position_embeddings", 2048},
                        {"rope_parameters", {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 10000.0}}}};
  for (const json& config : {old, current}) {
    expect_frequencies(read(config), 0, expected);
    EXPECT_EQ(context_limit(ConfigReader(config, "config.json"), read(config)), 8192);
  }
}

TEST(Rope, DynamicGrowsBeyondTheTrainedContext) {
  const json config = {{"max_position_embeddings", 2048},
                       {"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}}};
  const RopeDesc rope = read(config);
  const std::vector<float> within = {1.0f,           0.749894202f,    0.237137362f,   0.0562341288f,
                                     0.0133352149f,  0.00999999978f,  0.00749894232f, 0.00562341325f,
                                     0.00316227786f, 0.000749894185f, 0.00013335215f};
  expect_frequencies(rope, 1, within);
  expect_frequencies(rope, 2048, within);
  expect_frequencies(rope, 3000,
                     {1.0f, 0.734160006f, 0.213281766f, 0.0454891101f, 0.00970199704f, 0.00712281885f, 0.00522928871f,
                      0.00383913494f, 0.00206925906f, 0.000441335229f, 6.91055684e-05f});
  EXPECT_EQ(context_limit(ConfigReader(config, "config.json"), rope), 4096);
}

TEST(Rope, Llama3BlendsTheMiddleFrequencies) {
  json config = {{"max_position_embeddings", 131072},
                 {"rope_theta", 500000.0},
                 {"rope_scaling",
                  {{"rope_type", "llama3"},
                   {"factor", 8.0},
                   {"low_freq_factor", 1.0},
                   {"high_freq_factor", 4.0},
                   {"original_max_position_embeddings", 8192}}}};
  expect_frequencies(read(config), 0,
                     {1.0f, 0.663601279f, 0.128687382f, 0.0165604409f, 0.00137189368f, 0.000524846022f, 0.000178507791f,
                      7.78465546e-05f, 3.42810235e-05f, 4.41153452e-06f, 3.7673226e-07f});
  config["rope_scaling"]["factor"] = 32.0;
  expect_frequencies(read(config), 0,
                     {1.0f, 0.663601279f, 0.128687382f, 0.0165604409f, 0.00129054801f, 0.000429556705f, 9.70828623e-05f,
                      1.94616387e-05f, 8.57025589e-06f, 1.10288363e-06f, 9.41830649e-08f});
  EXPECT_EQ(context_limit(ConfigReader(config, "config.json"), read(config)), 131072);
}

TEST(Rope, NamesTheFieldThatIsWrong) {
  EXPECT_EQ(
      message_of_rope({{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}}),
      "config.json: \"rope_scaling.type\" is \"yarn\", expected \"default\", \"linear\", \"dynamic\" or \"llama3\"");
  EXPECT_EQ(message_of_rope({{"rope_parameters", {{"rope_type", "linear"}}}}),
            "config.json: \"rope_parameters.factor\" is nothing, expected a number of at least 1");
  EXPECT_EQ(message_of_rope({{"rope_theta", -1}}), "config.json: \"rope_theta\" is -1, expected a positive number");
  EXPECT_EQ(message_of_rope({{"rope_scaling", "linear"}}),
            "config.json: \"rope_scaling\" is \"linear\", expected an object");
  EXPECT_EQ(message_of_rope({{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}}),
            "config.json: \"rope_parameters.partial_rotary_factor\" is 0.5, expected 1");
  EXPECT_EQ(message_of_rope({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2}}}}),
            "config.json: \"max_position_embeddings\" is nothing, expected a positive integer");
  EXPECT_NE(message_of_rope({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}), "");
  EXPECT_THROW(read(json::object(), 7), Error);
}

}  // namespace
}  // namespace hxq
