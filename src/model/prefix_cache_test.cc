// What is reused gives the bits that running it again gives.

#include "model/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <random>

#include "e2e/guarded_device.h"
#include "e2e/texts.h"
#include "hxq/error.h"
#include "hxq/scheduler.h"

namespace hxq {
namespace {

constexpr const char* kFolders[] = {"models/wiki-mamba-7m", "tests/e2e/mamba2-limit",  "tests/e2e/zamba2-adapters",
                                    "tests/e2e/llama-bias", "tests/e2e/llama-dynamic", "tests/e2e/qwen2-sliding"};

std::filesystem::path folder(const std::string& name) { return std::filesystem::path(HXQ_SOURCE_DIR) / name; }

/// Knows the tokens of every model of these tests.
const Tokenizer& tokenizer() {
  static const Tokenizer loaded = Tokenizer::load(folder("models/wiki-mamba-7m"));
  return loaded;
}

std::vector<int32_t> random_tokens(std::mt19937& random, size_t count) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 64);
  return tokens;
}

std::vector<int32_t> joined(std::vector<int32_t> first, const std::vector<int32_t>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

std::vector<float> last_logits(const Model& model, const std::vector<int32_t>& tokens, Sequence& sequence,
                               Workspace& workspace) {
  std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
  const Segment segment{.sequence = &sequence,
                        .tokens = std::ssize(tokens),
                        .phase = Phase::prefill,
                        .logits = Logits::last,
                        .end = model.info().positions_scale ? 120 : 0};
  model.forward(tokens, {&segment, 1}, workspace, logits);
  return logits;
}

class Copies : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(Copies, GoOnEachByItself) {
  static const bool added = (kernels::add_device(std::make_unique<testing::GuardedDevice>()), true);
  ASSERT_TRUE(added);
  const auto& [name, device] = GetParam();
  const Model model = Model::open(folder(name), {.threads = 1, .device = device});
  Workspace workspace = model.new_workspace();
  std::mt19937 random(1);
  // 80: a whole tile of a cache, and a part of one.
  const std::vector<int32_t> shared = random_tokens(random, 80);
  const std::vector<int32_t> ends[] = {random_tokens(random, 9), random_tokens(random, 30), random_tokens(random, 1)};
  std::vector<std::vector<float>> expected;
  for (const std::vector<int32_t>& end : ends) {
    Sequence alone = model.new_sequence();
    last_logits(model, shared, alone, workspace);
    expected.push_back(last_logits(model, end, alone, workspace));
  }
  Sequence first = model.new_sequence(), second = model.new_sequence(), third = model.new_sequence();
  last_logits(model, shared, first, workspace);
  last_logits(model, ends[1], second, workspace);  // has something to forget
  second.copy_from(first);
  third.copy_from(second);
  EXPECT_EQ(second.position(), 80);
  EXPECT_GT(second.bytes(), 0);
  EXPECT_EQ(last_logits(model, ends[0], first, workspace), expected[0]);
  first.reset();
  last_logits(model, joined(ends[1], ends[1]), first, workspace);  // over what was shared, were it not let go
  EXPECT_EQ(last_logits(model, ends[1], second, workspace), expected[1]);
  EXPECT_EQ(last_logits(model, ends[2], third, workspace), expected[2]);
}

INSTANTIATE_TEST_SUITE_P(Models, Copies,
                         ::testing::Combine(::testing::ValuesIn(kFolders), ::testing::Values("cpu", "guarded")),
                         [](const auto& test) {
                           std::string name = std::get<1>(test.param);
                           name += "_" + folder(std::get<0>(test.param)).filename().string();
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST(Copies, OfAnotherModelsSequence) {
  const Model one = Model::open(folder("tests/e2e/llama-bias")), other = Model::open(folder("tests/e2e/llama-bias"));
  Sequence sequence = one.new_sequence();
  EXPECT_THROW(sequence.copy_from(other.new_sequence()), Error);
}

/// Results of these prompts, each added after `gap` steps.
std::vector<GenerateResult> run(const Model& model, const std::vector<std::vector<int32_t>>& prompts,
                                const Scheduler::Limits& limits, int gap, int64_t shared) {
  Scheduler scheduler(model, limits);
  std::vector<Scheduler::Id> ids;
  for (size_t i = 0; i < prompts.size(); ++i) {
    GenerateOptions options = {.max_tokens = 1 + int64_t(i % 5)};
    if (i % 3 != 0) {  // the others are greedy: their logits stay where they are, but for those that are kept
      options.sampling = {.temperature = 1, .repetition_penalty = 1.2, .seed = i};
      options.logprobs = 1;
    }
    ids.push_back(scheduler.add(Generation(model.info(), tokenizer(), prompts[i], options), shared));
    for (int s = 0; s < gap; ++s) scheduler.step();
  }
  while (scheduler.step()) {
  }
  std::vector<GenerateResult> results;
  for (const Scheduler::Id id : ids) results.push_back(scheduler.take(id).value());
  return results;
}

class Prefixes : public ::testing::TestWithParam<const char*> {};

TEST_P(Prefixes, GiveTheSameTexts) {
  const Model model = Model::open(folder(GetParam()), {.threads = 1});
  const bool is_long = model.info().context_length == 0;
  std::mt19937 random(2);
  const std::vector<int32_t> shared = random_tokens(random, is_long ? 520 : 70);
  std::vector<std::vector<int32_t>> prompts;
  for (size_t i = 0; i < (is_long ? 6u : 16u); ++i) {
    std::vector<int32_t> beginning = i % 3 == 2 ? prompts[random() % i] : shared;
    beginning.resize(std::min<size_t>(beginning.size(), is_long ? 600 : 120));
    prompts.push_back(joined(beginning, random_tokens(random, i % 4 == 3 ? 0 : 1 + random() % 20)));
  }
  const std::vector<GenerateResult> expected = run(model, prompts, {}, 0, 0);
  for (const int gap : {0, 3}) {
    for (const int64_t bytes : {int64_t{1} << 30, int64_t{3} << 20, int64_t{1}}) {
      const Scheduler::Limits limits = {
          .sequences = 3, .prefill_tokens = 100, .prefill_tokens_beside_decode = 17, .prefix_bytes = bytes};
      const std::vector<GenerateResult> found = run(model, prompts, limits, gap, std::ssize(shared));
      int64_t reused = 0;
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_EQ(found[i].tokens, expected[i].tokens) << i;
        EXPECT_EQ(found[i].text, expected[i].text);
        for (size_t t = 0; t < found[i].logprobs.size(); ++t) {
          EXPECT_EQ(found[i].logprobs[t].logprob, expected[i].logprobs[t].logprob);
        }
        EXPECT_LE(found[i].reused_tokens, std::ssize(prompts[i]));
        reused += found[i].reused_tokens;
      }
      if (bytes == 1) {
        EXPECT_EQ(reused, 0);
      }
      if (bytes == int64_t{1} << 30 && !model.info().positions_scale) {
        EXPECT_GT(reused, (is_long ? 2 : 6) * std::ssize(shared));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Prefixes, ::testing::ValuesIn(kFolders), [](const auto& test) {
  std::string name = folder(test.param).filename().string();
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST(Prefixes, ChoicesOfOnePromptRunItOnce) {
  const Model model = Model::open(folder("tests/e2e/llama-bias"), {.threads = 2});
  std::mt19937 random(3);
  const std::vector<std::vector<int32_t>> prompts(8, random_tokens(random, 100));
  const std::vector<GenerateResult> found = run(model, prompts, {.sequences = 8, .prefix_bytes = 1 << 30}, 0, 0);
  EXPECT_EQ(found[0].reused_tokens, 0);
  for (size_t i = 1; i < 8; ++i) EXPECT_EQ(found[i].reused_tokens, 100);
}

/// Prompts of 10 tokens and sequences that have run them.
struct RunPrompts {
  std::vector<std::vector<int32_t>> prompts = {};
  std::vector<Sequence> sequences = {};
  std::vector<float> logits = {};  // of the last

  RunPrompts(const Model& model, int count, uint32_t seed) {
    Workspace workspace = model.new_workspace();
    std::mt19937 random(seed);
    for (int i = 0; i < count; ++i) {
      prompts.push_back(random_tokens(random, 10));
      sequences.push_back(model.new_sequence());
      logits = last_logits(model, prompts.back(), sequences.back(), workspace);
    }
  }
};

TEST(Prefixes, EntriesThatWereNotUsedForLongestGo) {
  const Model model = Model::open(folder("tests/e2e/llama-bias"), {.threads = 2});
  const auto [prompts, sequences, logits] = RunPrompts(model, 3, 4);
  const auto longer = [&begun = prompts](int i) { return joined(begun[static_cast<size_t>(i)], {1}); };
  PrefixCache cache(model, 2 * sequences[0].bytes() + 100);
  cache.keep(prompts[0], sequences[0], {});
  cache.keep(prompts[1], sequences[1], {});
  EXPECT_NE(cache.find(longer(0)), nullptr);
  EXPECT_EQ(cache.find(prompts[0]), nullptr) << "without its logits, all of a prompt is of no use";
  cache.keep(prompts[2], sequences[2], {});
  EXPECT_NE(cache.find(longer(0)), nullptr);
  EXPECT_EQ(cache.find(longer(1)), nullptr);
  EXPECT_NE(cache.find(longer(2)), nullptr);
}

TEST(Prefixes, WhatASequenceHadBeforeCountsNothing) {
  const Model model = Model::open(folder("tests/e2e/llama-bias"), {.threads = 2});
  Workspace workspace = model.new_workspace();
  std::mt19937 random(6);
  const std::vector<int32_t> before = random_tokens(random, 150), prompt = random_tokens(random, 10);
  Sequence fresh = model.new_sequence(), reused = model.new_sequence();
  last_logits(model, before, reused, workspace);
  reused.reset();
  last_logits(model, prompt, fresh, workspace);
  const std::vector<float> logits = last_logits(model, prompt, reused, workspace);
  ASSERT_GT(reused.bytes(), fresh.bytes());
  const int64_t entry = fresh.bytes() + std::ssize(prompt) * int64_t{sizeof(int32_t)};
  PrefixCache cache(model, entry + std::ssize(logits) * int64_t{sizeof(float)} - 1);
  cache.keep(prompt, reused, {});
  EXPECT_NE(cache.find(joined(prompt, {1})), nullptr);
  cache.keep(prompt, fresh, logits);
  EXPECT_EQ(cache.find(prompt), nullptr) << "there is no room for its logits";
  EXPECT_NE(cache.find(joined(prompt, {1})), nullptr);
}

TEST(Prefixes, LogitsThatComeLaterCountToo) {
  const Model model = Model::open(folder("tests/e2e/llama-bias"), {.threads = 2});
  const auto [prompts, sequences, logits] = RunPrompts(model, 2, 5);
  const int64_t entry = sequences[0].bytes() + std::ssize(prompts[0]) * int64_t{sizeof(int32_t)};
  PrefixCache cache(model, 2 * entry + 10);
  cache.keep(prompts[0], sequences[0], {});
  cache.keep(prompts[1], sequences[1], {});
  EXPECT_NE(cache.find(joined(prompts[0], {1})), nullptr);
  cache.keep(prompts[1], sequences[1], logits);
  EXPECT_NE(cache.find(prompts[1]), nullptr);
  EXPECT_EQ(cache.find(joined(prompts[0], {1})), nullptr) << "both are more than the limit";
}

}  // namespace
}  // namespace hxq
