// Tiny random checkpoints against what transformers made of them; see make_models.py.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "devices.h"
#include "hxq/error.h"
#include "hxq/model.h"
#include "io/checkpoint.h"
#include "kernels/cpu_context.h"
#include "kernels/kernels.h"
#include "model_runner.h"

namespace hxq {
namespace {

class EndToEnd : public ::testing::TestWithParam<const char*> {
 protected:
  EndToEnd()
      : dir_(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / GetParam()),
        expected_(Checkpoint::open(dir_ / "expected.safetensors")),
        logits_(to_float(*expected_.find("logits"))),
        hidden_(to_float(*expected_.find("hidden"))),
        hidden_mean_(to_float(*expected_.find("hidden_mean"))) {
    const TensorView& ids = *expected_.find("ids");
    ids_.resize(static_cast<size_t>(ids.size()));
    std::copy_n(ids.bytes.data(), ids.bytes.size(), reinterpret_cast<std::byte*>(ids_.data()));
  }

  /// Largest difference of the last logits when the tokens come in calls of `piece`.
  float difference(const Model& model, size_t piece) const {
    testing::ModelRunner runner(model);
    const auto vocab = static_cast<size_t>(model.info().vocab_size);
    std::vector<float> logits(ids_.size() * vocab);
    for (size_t first = 0; first < ids_.size(); first += piece) {
      const size_t count = std::min(piece, ids_.size() - first);
      runner.prefill(std::span(ids_).subspan(first, count), Logits::all,
                     std::span(logits).subspan(first * vocab, count * vocab));
    }
    const float* last = logits.data() + logits.size() - logits_.size();
    float largest = 0;
    for (size_t i = 0; i < logits_.size(); ++i) largest = std::max(largest, std::abs(last[i] - logits_[i]));
    return largest;
  }

  /// Largest difference of the last hidden states, and of the mean of all.
  float hidden_difference(const Model& model) const {
    Sequence sequence = model.new_sequence();
    Workspace workspace = model.new_workspace();
    const auto hidden = static_cast<size_t>(model.info().hidden_size);
    std::vector<float> states(ids_.size() * hidden);
    const Segment segment{.sequence = &sequence, .tokens = std::ssize(ids_), .logits = Logits::all};
    model.hidden_states(ids_, {&segment, 1}, workspace, states);
    const float* last = states.data() + states.size() - hidden_.size();
    float largest = 0;
    for (size_t i = 0; i < hidden_.size(); ++i) largest = std::max(largest, std::abs(last[i] - hidden_[i]));
    for (size_t i = 0; i < hidden; ++i) {
      double sum = 0;
      for (size_t t = 0; t < ids_.size(); ++t) sum += static_cast<double>(states[t * hidden + i]);
      const auto mean = static_cast<float>(sum / static_cast<double>(ids_.size()));
      largest = std::max(largest, std::abs(mean - hidden_mean_[i]));
    }
    return largest;
  }

  std::filesystem::path dir_;
  Checkpoint expected_;
  std::vector<float> logits_;       // [4, vocab]
  std::vector<float> hidden_;       // [4, hidden]
  std::vector<float> hidden_mean_;  // [hidden]: of all tokens
  std::vector<int32_t> ids_;
};

TEST_P(EndToEnd, LogitsAreThoseOfTransformers) {
  for (const Target target : kernels::supported_targets()) {
    const Model model = Model::open(dir_, {.threads = 1, .target = target});
    for (const size_t piece : {ids_.size(), size_t{100}, size_t{7}, size_t{1}}) {
      // The angles of dynamic scaling depend on how far the call goes.
      if (std::string_view(GetParam()) == "llama-dynamic" && piece < ids_.size()) continue;
      SCOPED_TRACE(::testing::Message() << name_of(target) << ", " << piece << " tokens at once");
      EXPECT_LE(difference(model, piece), 5e-5f);
    }
  }
}

TEST_P(EndToEnd, HiddenStatesAreThoseOfTransformers) {
  for (const Target target : kernels::supported_targets()) {
    SCOPED_TRACE(name_of(target));
    EXPECT_LE(hidden_difference(Model::open(dir_, {.threads = 2, .target = target})), 5e-5f);
  }
}

TEST_P(EndToEnd, LogitsOnAGpuAreThoseOfTransformers) {
  HXQ_NEEDS_DEVICE("cuda");
  const Model model = Model::open(dir_, {.precision = Precision::exact, .device = "cuda"});
  for (const size_t piece : {ids_.size(), size_t{100}, size_t{7}, size_t{1}}) {
    if (std::string_view(GetParam()) == "llama-dynamic" && piece < ids_.size()) continue;
    SCOPED_TRACE(::testing::Message() << piece << " tokens at once");
    EXPECT_LE(difference(model, piece), 5e-5f);
  }
}

TEST_P(EndToEnd, StatesStartOver) {
  const Model model = Model::open(dir_, {.threads = 2});
  testing::ModelRunner runner(model);
  const auto vocab = static_cast<size_t>(model.info().vocab_size);
  std::vector<float> first(vocab), again(vocab);
  runner.prefill(ids_, Logits::last, first);
  runner.reset();
  runner.prefill(ids_, Logits::last, again);
  EXPECT_EQ(first, again);
}

TEST(Context, EndsWhereTheConfigSays) {
  const Model model = Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / "llama-bias");
  ASSERT_EQ(model.info().context_length, 160);
  testing::ModelRunner runner(model);
  const std::vector<int32_t> tokens(161, 1);
  try {
    runner.prefill(tokens, Logits::none, {});
    ADD_FAILURE() << "161 tokens went into a context of 160";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "161 tokens after 0: the model's context holds 160");
  }
  EXPECT_EQ(runner.position(), 0);
  const std::span<const int32_t> all(tokens);
  runner.prefill(all.first(160), Logits::none, {});
  EXPECT_THROW(runner.prefill(all.first(1), Logits::none, {}), Error);
  runner.reset();
  EXPECT_NO_THROW(runner.prefill(all.first(1), Logits::none, {}));
}

TEST(KvCache, InHalfPrecisionIsCloseButNotTheSame) {
  const std::filesystem::path dir = std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / "qwen2-sliding";
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 100; ++i) tokens.push_back(i * 7 % 64);
  std::vector<float> logits[2];
  for (const bool half : {false, true}) {
    const Model model = Model::open(dir, {.kv_cache = half ? DType::f16 : DType::f32});
    testing::ModelRunner runner(model);
    logits[half].resize(static_cast<size_t>(model.info().vocab_size));
    runner.prefill(tokens, Logits::last, logits[half]);
  }
  EXPECT_NE(logits[0], logits[1]);
  for (size_t i = 0; i < logits[0].size(); ++i) EXPECT_NEAR(logits[0][i], logits[1][i], 5e-3f);
  EXPECT_THROW(Model::open(dir, {.kv_cache = DType::u8}), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, EndToEnd,
                         ::testing::Values("llama-bias", "llama-dynamic", "llama-linear", "llama-llama3", "mamba-tiles",
                                           "mamba2-limit", "mamba2-no-conv-bias", "qwen2-layer-types", "qwen2-sliding",
                                           "qwen2-tiles", "zamba2-adapters", "zamba2-bias", "zamba2-plain"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace hxq
