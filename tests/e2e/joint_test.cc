// What a token gives depends on its sequence and its phase alone, bit for bit: not on the sequences that are computed
// with it, the pieces that a prompt comes in, or the number of threads.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "kernels/cpu_context.h"
#include "shared_data.h"
#include "texts.h"

namespace hxq {
namespace {

using testing::Text;

struct Case {
  const char* folder;
  bool compressed;
};

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

class Joint : public ::testing::TestWithParam<Case> {
 protected:
  testing::TestFolder folder_{GetParam().folder, GetParam().compressed};
};

TEST_P(Joint, EveryTextIsWhatItIsAlone) {
  constexpr int64_t kMost = 64;
  for (const Target target : kernels::supported_targets()) {
    std::vector<std::vector<std::vector<float>>> expected;
    for (const int threads : {1, 2, 7}) {
      const Model model = Model::open(folder_.path(), {.threads = threads, .target = target});
      Sequence sequence = model.new_sequence();
      Workspace workspace = model.new_workspace();
      for (int64_t i = 0; expected.size() < kMost; ++i) {
        expected.push_back(alone(model, testing::text_of(i, model.info().vocab_size), sequence, workspace));
      }
      for (const int64_t count : {1, 2, 3, 8, 9, 33, 64}) {
        const auto results = together(model, count);
        for (size_t i = 0; i < results.size(); ++i) {
          ASSERT_EQ(results[i], expected[i])
              << "text " << i << " of " << count << ", " << name_of(target) << ", " << threads << " threads";
        }
      }
    }
  }
}

TEST_P(Joint, PromptsComeInAnyPieces) {
  for (const Target target : kernels::supported_targets()) {
    for (const Precision precision : {Precision::fast, Precision::exact}) {
      const Model model = Model::open(folder_.path(), {.threads = 2, .target = target, .precision = precision});
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
        for (int64_t first = 0; first < length; first += piece) {
          const int64_t count = std::min(piece, length - first);
          const Segment segment{.sequence = &sequence, .tokens = count, .logits = Logits::all, .end = length};
          model.forward(
              std::span(tokens).subspan(static_cast<size_t>(first), static_cast<size_t>(count)), {&segment, 1},
              workspace,
              std::span(logits[piece]).subspan(static_cast<size_t>(first) * vocab, static_cast<size_t>(count) * vocab));
        }
        ASSERT_EQ(logits[piece], logits[length]) << "pieces of " << piece << ", " << name_of(target);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Joint,
                         ::testing::Values(Case{"tests/golden/1", false}, Case{"tests/e2e/mamba2-limit", false},
                                           Case{"tests/e2e/mamba2-limit", true},
                                           Case{"tests/e2e/zamba2-adapters", false},
                                           Case{"tests/e2e/zamba2-adapters", true}, Case{"tests/e2e/llama-bias", false},
                                           Case{"tests/e2e/llama-bias", true}, Case{"tests/e2e/llama-dynamic", true},
                                           Case{"tests/e2e/qwen2-sliding", false},
                                           Case{"tests/e2e/qwen2-sliding", true}),
                         [](const auto& test) {
                           std::string name = std::filesystem::path(test.param.folder).filename();
                           std::ranges::replace(name, '-', '_');
                           return name + (test.param.compressed ? "_compressed" : "");
                         });

}  // namespace
}  // namespace hxq
