// What a token gives depends on its sequence and its phase alone, bit for bit: not on the sequences that are computed
// with it, the pieces that a prompt comes in, or the number of threads. On a GPU within a bound: one token takes other
// kernels than several.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "devices.h"
#include "kernels/cpu_context.h"
#include "shared_data.h"
#include "texts.h"

namespace hxq {
namespace {

using testing::Text;

using Case = testing::DeviceCase;

/// One of the texts of a joint run.
struct Running {
  Text text;
  Sequence sequence;
  int64_t starts;  ///< step in which it begins
  int64_t piece;   ///< tokens of its prompt in a step
  size_t run = 0;  ///< tokens that were run
  std::vector<std::vector<float>> logits = {};

  bool done() const { return run == text.prompt.size() + text.decoded.size(); }
};

/// Adds the text's part of a step.
void add(Running& running, std::vector<int32_t>& tokens, std::vector<Segment>& segments) {
  const Text& text = running.text;
  Segment segment{.sequence = &running.sequence, .tokens = 1, .phase = Phase::decode, .logits = Logits::last};
  if (running.run < text.prompt.size()) {
    const auto left = static_cast<int64_t>(text.prompt.size() - running.run);
    segment.tokens = std::min(left, running.piece);
    segment.phase = Phase::prefill;
    segment.logits = segment.tokens == left ? Logits::last : Logits::none;
    segment.end = static_cast<int64_t>(text.prompt.size());
    tokens.insert(tokens.end(), text.prompt.begin() + static_cast<int64_t>(running.run),
                  text.prompt.begin() + static_cast<int64_t>(running.run) + segment.tokens);
  } else {
    tokens.push_back(text.decoded[running.run - text.prompt.size()]);
  }
  segments.push_back(segment);
  running.run += static_cast<size_t>(segment.tokens);
}

/// Runs texts 0 to count - 1 together, begun and ended at different times.
std::vector<std::vector<std::vector<float>>> together(const Model& model, int64_t count) {
  const auto vocab = static_cast<size_t>(model.info().vocab_size);
  Workspace workspace = model.new_workspace();
  std::vector<Running> texts;
  for (int64_t i = 0; i < count; ++i) {
    constexpr int64_t kPieces[] = {1000, 7, 1, 16};
    texts.push_back({testing::text_of(i, model.info().vocab_size), model.new_sequence(), i * 3 % 5, kPieces[i % 4]});
  }
  const auto left = [&] { return std::ranges::any_of(texts, [](const Running& text) { return !text.done(); }); };
  for (int64_t step = 0; left(); ++step) {
    std::vector<int32_t> tokens;
    std::vector<Segment> segments;
    std::vector<Running*> wanting;
    for (Running& text : texts) {
      if (text.done() || step < text.starts) continue;
      add(text, tokens, segments);
      if (segments.back().logits == Logits::last) wanting.push_back(&text);
    }
    if (segments.empty()) continue;
    std::vector<float> logits(wanting.size() * vocab);
    model.forward(tokens, segments, workspace, logits);
    for (size_t i = 0; i < wanting.size(); ++i) {
      wanting[i]->logits.emplace_back(logits.begin() + static_cast<int64_t>(i * vocab),
                                      logits.begin() + static_cast<int64_t>((i + 1) * vocab));
    }
  }
  std::vector<std::vector<std::vector<float>>> results;
  for (Running& text : texts) results.push_back(std::move(text.logits));
  return results;
}

/// What a test varies in how a model is run, and how far results may be apart.
struct Variant {
  ModelOptions options;
  double bound;
  std::string name;
};

class Joint : public ::testing::TestWithParam<Case> {
 protected:
  std::vector<Variant> variants(const std::vector<int>& threads, const std::vector<Precision>& precisions) const {
    std::vector<Variant> all;
    for (const Precision precision : precisions) {
      ModelOptions options;
      options.precision = precision;
      options.device = GetParam().device;
      if (!GetParam().on_cpu()) {
        options.precision = Precision::exact;
        return {{options, testing::gpu_bound(), GetParam().device}};
      }
      for (const Target target : kernels::supported_targets()) {
        for (const int count : threads) {
          options.target = target;
          options.threads = count;
          all.push_back({options, 0, std::string(name_of(target)) + ", " + std::to_string(count) + " threads"});
        }
      }
    }
    return all;
  }

  testing::TestFolder folder_{GetParam().folder, GetParam().compressed};
};

TEST_P(Joint, EveryTextIsWhatItIsAlone) {
  HXQ_NEEDS_DEVICE(GetParam().device);
  constexpr int64_t kMost = 64;
  std::vector<std::vector<std::vector<float>>> expected;
  for (const Variant& variant : variants({1, 2, 7}, {Precision::fast})) {
    const Model model = Model::open(folder_.path(), variant.options);
    if (variant.options.threads <= 1) {  // the first of its target
      expected.clear();
      Sequence sequence = model.new_sequence();
      Workspace workspace = model.new_workspace();
      for (int64_t i = 0; i < kMost; ++i) {
        expected.push_back(alone(model, testing::text_of(i, model.info().vocab_size), sequence, workspace));
      }
    }
    // Every count on one thread and among several; the most on each number of threads.
    std::vector<int64_t> counts{1, 2, 3, 8, 9, 33, 64};
    if (variant.options.threads == 2) counts = {1, 33, 64};
    if (variant.options.threads == 7) counts = {2, 3, 8, 9, 64};
    for (const int64_t count : counts) {
      const auto results = together(model, count);
      for (size_t i = 0; i < results.size(); ++i) {
        ASSERT_EQ(results[i].size(), expected[i].size());
        for (size_t token = 0; token < results[i].size(); ++token) {
          testing::expect_logits(results[i][token], expected[i][token], variant.bound,
                                 "text " + std::to_string(i) + " of " + std::to_string(count) + ", " + variant.name);
        }
      }
    }
  }
}

/// Where the caller does not say how many threads there are, steps find out how many are fastest.
TEST_P(Joint, ThreadsThatAdaptChangeNothing) {
  if (!GetParam().on_cpu()) GTEST_SKIP() << "threads are the CPU's";
  const Model adapts = Model::open(folder_.path(), {}), one = Model::open(folder_.path(), {.threads = 1});
  Sequence sequence = adapts.new_sequence(), other = one.new_sequence();
  Workspace workspace = adapts.new_workspace(), other_workspace = one.new_workspace();
  Text text = testing::text_of(1, one.info().vocab_size);
  text.decoded.resize(60, text.decoded.front());
  EXPECT_EQ(alone(adapts, text, sequence, workspace), alone(one, text, other, other_workspace));
}

TEST_P(Joint, PromptsComeInAnyPieces) {
  constexpr int64_t kSingle = 100;
  HXQ_NEEDS_DEVICE(GetParam().device);
  for (const Variant& variant : variants({2}, {Precision::fast, Precision::exact})) {
    const Model model = Model::open(folder_.path(), variant.options);
    const int64_t context = model.info().context_length;
    const int64_t length = context > 0 ? std::min<int64_t>(context, 1500) : 1500;
    const auto vocab = static_cast<size_t>(model.info().vocab_size);
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < length; ++i) tokens.push_back(static_cast<int32_t>(i * i * 31 % model.info().vocab_size));
    Workspace workspace = model.new_workspace();
    std::map<int64_t, std::vector<float>> logits;  // by piece
    for (const int64_t piece : {length, int64_t{1}, int64_t{7}, int64_t{64}, int64_t{512}}) {
      Sequence sequence = model.new_sequence();
      logits[piece].resize(tokens.size() * vocab);
      for (int64_t first = 0, count = 0; first < length; first += count) {
        // Single tokens take long: they are the first and the last of a prompt.
        const bool is_middle = piece == 1 && first == kSingle && length > 2 * kSingle;
        count = std::min(is_middle ? length - 2 * kSingle : piece, length - first);
        const Segment segment{.sequence = &sequence, .tokens = count, .logits = Logits::all, .end = length};
        model.forward(
            std::span(tokens).subspan(static_cast<size_t>(first), static_cast<size_t>(count)), {&segment, 1}, workspace,
            std::span(logits[piece]).subspan(static_cast<size_t>(first) * vocab, static_cast<size_t>(count) * vocab));
      }
      testing::expect_logits(logits[piece], logits[length], variant.bound,
                             "pieces of " + std::to_string(piece) + ", " + variant.name);
    }
  }
}

/// A token of each, step after step: a GPU launches the first step, records the second, and then runs what it recorded.
TEST_P(Joint, TextsThatStayTogetherAreWhatTheyAreAlone) {
  HXQ_NEEDS_DEVICE(GetParam().device);
  for (const Variant& variant : variants({2}, {Precision::fast})) {
    const Model model = Model::open(folder_.path(), variant.options);
    const auto vocab = static_cast<size_t>(model.info().vocab_size);
    Workspace workspace = model.new_workspace();
    for (const int32_t count : {2, 9, 20, 64}) {
      std::vector<Sequence> alone, together;
      for (int32_t i = 0; i < count; ++i) {
        const std::vector<int32_t> prompt(static_cast<size_t>(1 + i % 7),
                                          static_cast<int32_t>(i % model.info().vocab_size));
        for (std::vector<Sequence>* sequences : {&alone, &together}) {
          sequences->push_back(model.new_sequence());
          model.forward(prompt, sequences->back(), Phase::prefill, Logits::none, workspace, {});
        }
      }
      constexpr int32_t kSteps = 5;
      for (int32_t step = 0; step < kSteps; ++step) {
        std::vector<int32_t> tokens;
        std::vector<Segment> segments;
        std::vector<float> expected, own(vocab);
        for (int32_t i = 0; i < count; ++i) {
          const bool is_asked = step < kSteps - 1 || i == count / 2;  // at last only one
          tokens.push_back(static_cast<int32_t>((i * 31 + step * 7) % model.info().vocab_size));
          segments.push_back({.sequence = &together[static_cast<size_t>(i)],
                              .tokens = 1,
                              .phase = Phase::decode,
                              .logits = is_asked ? Logits::last : Logits::none});
          model.forward({&tokens.back(), 1}, alone[static_cast<size_t>(i)], Phase::decode, Logits::last, workspace,
                        own);
          if (is_asked) expected.insert(expected.end(), own.begin(), own.end());
        }
        std::vector<float> logits(expected.size());
        model.forward(tokens, segments, workspace, logits);
        testing::expect_logits(logits, expected, variant.bound,
                               std::to_string(count) + " texts, step " + std::to_string(step) + ", " + variant.name);
      }
    }
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* device : {"cpu", "cuda"}) {
    for (const Case& test :
         {Case{"tests/golden/1"}, Case{"tests/golden/2"}, Case{"tests/golden/3"}, Case{"tests/e2e/mamba2-limit"},
          Case{"tests/e2e/mamba2-limit", true}, Case{"tests/e2e/zamba2-adapters"},
          Case{"tests/e2e/zamba2-adapters", true}, Case{"tests/e2e/llama-bias"}, Case{"tests/e2e/llama-bias", true},
          Case{"tests/e2e/llama-dynamic", true}, Case{"tests/e2e/qwen2-sliding"},
          Case{"tests/e2e/qwen2-sliding", true}}) {
      all.push_back({test.folder, test.compressed, device});
    }
  }
  for (const char* folder : {"tests/e2e/mamba-tiles", "tests/e2e/qwen2-tiles"}) {  // whose layers are one kernel there
    all.push_back({folder, true, "cuda"});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Models, Joint, ::testing::ValuesIn(cases()), testing::name_of_case);

}  // namespace
}  // namespace hxq
