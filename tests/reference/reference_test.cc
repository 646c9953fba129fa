// The runtime against transformers in f32: figures in the shared folder's reference/.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "e2e/devices.h"
#include "hxq/compress.h"
#include "hxq/model.h"
#include "hxq/perplexity.h"
#include "hxq/tokenizer.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/npy.h"
#include "model_runner.h"
#include "shared_data.h"
#include "temp_dir.h"
#include "text_file.h"

namespace hxq {
namespace {

/// A model of the shared folder, and where it is to run.
struct Case {
  const char* model;
  const char* device;
};

class Reference : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    HXQ_REQUIRE_SHARED();
    HXQ_NEEDS_DEVICE(GetParam().device);
    dir_ = testing::shared_dir() / "models" / GetParam().model;
    expected_ = load_json(testing::shared_dir() / "reference" / (std::string(GetParam().model) + ".json"));
    options_.device = GetParam().device;
    if (options_.device != "cpu") options_.precision = Precision::exact;  // `fast` rounds x of dense models too
  }

  std::filesystem::path dir_;
  nlohmann::json expected_;
  ModelOptions options_;
};

TEST_P(Reference, LogitsOfTheFirst64Tokens) {
  const Model model = Model::open(dir_, options_);
  const auto ids = expected_.at("first_ids").get<std::vector<int32_t>>();
  const MappedFile file =
      MappedFile::open(testing::shared_dir() / "reference" / (std::string(GetParam().model) + ".logits.npy"));
  const TensorView npy = parse_npy(file.bytes(), "logits.npy");
  const std::vector<float> expected = to_float(npy);
  ASSERT_EQ(npy.shape, (Shape{16, model.info().vocab_size}));

  testing::ModelRunner runner(model);
  std::vector<float> logits(ids.size() * static_cast<size_t>(model.info().vocab_size));
  runner.prefill(ids, Logits::all, logits);
  const float* last = logits.data() + logits.size() - expected.size();
  float largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) largest = std::max(largest, std::abs(last[i] - expected[i]));
  RecordProperty("largest_difference", std::to_string(largest));
  EXPECT_LE(largest, 1e-3f);
  EXPECT_GT(largest, 0.0f) << "two programs that agree to the last bit are one program";
}

TEST_P(Reference, Greedy48Tokens) {
  const Model model = Model::open(dir_, options_);
  const auto expected = expected_.at("greedy").get<std::vector<int32_t>>();
  std::vector<int32_t> tokens(expected.begin(), expected.end() - 48);
  testing::ModelRunner runner(model);
  std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
  runner.prefill(tokens, Logits::last, logits);
  while (tokens.size() < expected.size()) {
    const auto token = static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
    tokens.push_back(token);
    runner.decode(token, logits);
  }
  EXPECT_EQ(tokens, expected);
}

TEST_P(Reference, FirstWindows) {
  const Model model = Model::open(dir_, options_);
  const Tokenizer tokenizer = Tokenizer::load(dir_);
  const auto tokens = tokenizer.encode(testing::read_file(testing::shared_dir() / "data" / "wikitext2-test.txt"));
  EXPECT_EQ(static_cast<int64_t>(tokens.size()), expected_.at("tokens"));
  const PerplexityResult result = perplexity(model, tokens, {.max_windows = 3});
  ASSERT_EQ(result.windows.size(), 3u);
  for (size_t i = 0; i < result.windows.size(); ++i) {
    const nlohmann::json& window = expected_.at("windows")[i];
    EXPECT_EQ(result.windows[i].begin, window[0]);
    EXPECT_EQ(result.windows[i].end, window[1]);
    EXPECT_EQ(result.windows[i].scored, window[2]);
    EXPECT_NEAR(result.windows[i].nll, window[3], 1e-4 * window[3].get<double>());
  }
}

/// A compressed model against the CPU: what products of several tokens round on a GPU does not show in what it
/// predicts.
TEST_P(Reference, WindowsOfTheCompressedModel) {
  if (options_.device == "cpu") GTEST_SKIP() << "compares other devices with the CPU";
  const testing::TempDir made;
  compress(dir_, made.path() / "compressed", {});
  const Tokenizer tokenizer = Tokenizer::load(dir_);
  const auto tokens = tokenizer.encode(testing::read_file(testing::shared_dir() / "data" / "wikitext2-test.txt"));
  const auto score = [&](const std::string& device, Precision precision) {
    const Model model = Model::open(made.path() / "compressed", {.precision = precision, .device = device});
    return perplexity(model, tokens, {.max_windows = 2}).perplexity;
  };
  const double expected = score("cpu", Precision::exact);
  const double exact = score(options_.device, Precision::exact), fast = score(options_.device, Precision::fast);
  RecordProperty("exact", std::to_string(exact / expected - 1));
  RecordProperty("fast", std::to_string(fast / expected - 1));
  EXPECT_NEAR(exact, expected, 1e-5 * expected);
  EXPECT_NEAR(fast, expected, 2e-4 * expected);
}

/// llama2.c's 260k-parameter story model: small enough to be run to the end, tied, with a context of 512.
class Stories : public ::testing::Test {
 protected:
  void SetUp() override {
    HXQ_REQUIRE_SHARED();
    model_.emplace(Model::open(testing::shared_dir() / "models" / "stories260k"));
    expected_ = load_json(testing::shared_dir() / "reference" / "stories260k.json");
  }

  std::vector<int32_t> ids(const char* key) const { return expected_.at(key).get<std::vector<int32_t>>(); }

  /// Greedy continuation of `tokens`, which go in as one call.
  std::vector<int32_t> continued(std::vector<int32_t> tokens, size_t size) const {
    testing::ModelRunner runner(*model_);
    std::vector<float> logits(static_cast<size_t>(model_->info().vocab_size));
    runner.prefill(tokens, Logits::last, logits);
    while (tokens.size() < size) {
      const auto token = static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
      tokens.push_back(token);
      runner.decode(token, logits);
    }
    return tokens;
  }

  std::optional<Model> model_;
  nlohmann::json expected_;
};

TEST_F(Stories, GreedyContinuations) {
  std::vector<int32_t> story = ids("greedy_prompt");
  const std::vector<int32_t> rest = ids("greedy");
  ASSERT_EQ(rest.size(), 200u);
  const std::vector<int32_t> got = continued(story, story.size() + rest.size());
  story.insert(story.end(), rest.begin(), rest.end());
  EXPECT_EQ(got, story);
  EXPECT_EQ(continued(ids("prompt_ids"), ids("prompt_greedy").size()), ids("prompt_greedy"));
}

TEST_F(Stories, Logits) {
  const std::vector<int32_t> tokens = ids("prompt_ids");
  const MappedFile file = MappedFile::open(testing::shared_dir() / "reference" / "stories260k.logits.npy");
  const std::vector<float> expected = to_float(parse_npy(file.bytes(), "logits.npy"));
  testing::ModelRunner runner(*model_);
  std::vector<float> logits(tokens.size() * static_cast<size_t>(model_->info().vocab_size));
  runner.prefill(tokens, Logits::all, logits);
  ASSERT_EQ(expected_.at("logits_positions"), (std::vector<int32_t>{0, 16}));
  ASSERT_EQ(expected.size(), 16u * 512u);
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 1e-3f);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* device : {"cpu", "cuda"}) {
    for (const char* model :
         {"wiki-llama", "wiki-mamba-7m", "wiki-mamba-25m", "wiki-mamba2", "wiki-qwen2", "wiki-zamba2"}) {
      all.push_back({model, device});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Dense, Reference, ::testing::ValuesIn(cases()), [](const auto& test) {
  std::string name = test.param.model;
  std::ranges::replace(name, '-', '_');
  return std::string_view(test.param.device) == "cpu" ? name : name + "_" + test.param.device;
});

}  // namespace
}  // namespace hxq
