#include "hxq/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "hxq/error.h"
#include "model_runner.h"

namespace hxq {
namespace {

const Model& tiny_model() {
  static const Model model =
      Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / "mamba2-limit", {.threads = 2});
  return model;
}

std::vector<int32_t> some_tokens(int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(i * 31 % tiny_model().info().vocab_size));
  return tokens;
}

/// Negative log-likelihoods of the last `scored` tokens, one by one from whole-window logits.
double nll_of(std::span<const int32_t> window, int64_t scored) {
  const auto vocab = static_cast<size_t>(tiny_model().info().vocab_size);
  std::vector<float> logits(window.size() * vocab);
  testing::ModelRunner runner(tiny_model());
  runner.prefill(window, Logits::all, logits);
  double sum = 0;
  for (size_t t = window.size() - static_cast<size_t>(scored); t < window.size(); ++t) {
    const auto at = std::span(logits).subspan((t - 1) * vocab, vocab);
    double total = 0;
    for (const float logit : at) total += std::exp(static_cast<double>(logit));
    sum += std::log(total) - static_cast<double>(at[static_cast<size_t>(window[t])]);
  }
  return sum;
}

TEST(Perplexity, ScoresEachTokenOnceInItsFirstWindow) {
  const std::vector<int32_t> tokens = some_tokens(70);
  const PerplexityResult result = perplexity(tiny_model(), tokens, {.window = 32, .stride = 12});
  ASSERT_EQ(result.windows.size(), 5u);
  int64_t scored_to = 1;
  double total = 0;
  for (const WindowScore& window : result.windows) {
    EXPECT_EQ(window.end - window.scored, scored_to);
    scored_to = window.end;
    const auto span =
        std::span(tokens).subspan(static_cast<size_t>(window.begin), static_cast<size_t>(window.end - window.begin));
    EXPECT_NEAR(window.nll, nll_of(span, window.scored), 1e-4 * window.nll);
    total += window.nll;
  }
  EXPECT_EQ(scored_to, 70);
  EXPECT_EQ(result.tokens_scored, 69);
  EXPECT_DOUBLE_EQ(result.perplexity, std::exp(total / 69));
}

TEST(Perplexity, WindowsFitTheContextAndOverlapByThreeQuarters) {
  const Model llama = Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / "llama-bias");
  const std::vector<int32_t> tokens(400, 7);
  const PerplexityResult result = perplexity(llama, tokens);
  EXPECT_EQ(result.windows[0].end, 160);
  EXPECT_EQ(result.windows[1].begin, 40);
  EXPECT_EQ(perplexity(llama, tokens, {.window = 10, .max_windows = 2}).windows[1].begin, 2);
  EXPECT_EQ(perplexity(llama, tokens, {.window = 3, .max_windows = 2}).windows[1].begin, 1);
  EXPECT_THROW(perplexity(llama, tokens, {.window = 161}), Error);
}

TEST(Perplexity, AModelAgainstItselfDoesNotDiffer) {
  const PerplexityResult result = perplexity(tiny_model(), some_tokens(40), {.against = &tiny_model()});
  EXPECT_EQ(result.against_perplexity, result.perplexity);
  for (const WindowScore& window : result.windows) EXPECT_EQ(window.against_nll, window.nll);
  EXPECT_NEAR(*result.mean_kl, 0, 1e-9);
  EXPECT_EQ(result.same_top, 1);
}

TEST(Perplexity, IsThatOfTheFinishedWindowsWhenInterrupted) {
  const std::vector<int32_t> tokens = some_tokens(70);
  PerplexityOptions options = {.window = 32, .stride = 12, .max_windows = 2, .against = &tiny_model()};
  const PerplexityResult two = perplexity(tiny_model(), tokens, options);
  EXPECT_FALSE(two.interrupted);
  options.max_windows = 0;
  options.interrupted = [asked = 0]() mutable { return ++asked > 2; };
  const PerplexityResult ended = perplexity(tiny_model(), tokens, options);
  EXPECT_TRUE(ended.interrupted);
  ASSERT_EQ(ended.windows.size(), 2u);
  EXPECT_EQ(ended.tokens_scored, two.tokens_scored);
  EXPECT_EQ(ended.perplexity, two.perplexity);
  EXPECT_EQ(ended.mean_kl, two.mean_kl);
  EXPECT_DOUBLE_EQ(*two.mean_kl * static_cast<double>(two.tokens_scored), *two.windows[0].kl + *two.windows[1].kl);
  options.interrupted = [] { return true; };
  const PerplexityResult none = perplexity(tiny_model(), tokens, options);
  EXPECT_TRUE(none.interrupted && none.windows.empty() && none.tokens_scored == 0);
}

TEST(Perplexity, RefusesTokensOutsideTheVocabularyWhereverTheyAre) {
  const auto vocab = static_cast<int32_t>(tiny_model().info().vocab_size);
  for (const int32_t bad : {vocab, -1}) {
    for (const size_t at : {size_t{0}, size_t{20}, size_t{39}}) {
      std::vector<int32_t> tokens = some_tokens(40);
      tokens[at] = bad;
      EXPECT_THROW(perplexity(tiny_model(), tokens), Error);
    }
  }
}

}  // namespace
}  // namespace hxq
