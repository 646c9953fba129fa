#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/model.h"
#include "hxq/tokenizer.h"

namespace hxq {

/// How the next token is chosen. Applied in transformers' order: repetition penalty, temperature, top-k, top-p.
struct SamplingOptions {
  double temperature = 0;         ///< 0: greedy, the most likely token
  int64_t top_k = 0;              ///< keep the k most likely tokens; 0: all
  double top_p = 1;               ///< keep the fewest tokens whose probabilities reach this sum
  double repetition_penalty = 1;  ///< > 1 makes tokens seen before less likely (Keskar et al. 2019, arXiv 1909.05858)
  uint64_t seed = 0;              ///< the same seed gives the same text
};

/// Chooses tokens; keeps the random state and the tokens seen so far.
class Sampler {
 public:
  /// Throws `Error` for options out of range.
  explicit Sampler(const SamplingOptions& options);

  /// Counts `tokens` as seen, for the repetition penalty.
  void observe(std::span<const int32_t> tokens);

  /// Chooses from logits [vocab] (which are changed by the penalty), and observes the choice. Ties go to the lower id.
  /// Throws `Error` if no choice can be made because logits are not finite.
  int32_t choose(std::span<float> logits);

 private:
  static int32_t most_likely(std::span<const float> logits);
  int32_t sample(std::span<const float> logits);
  double next_uniform();

  SamplingOptions options_;
  uint64_t random_state_;
  std::vector<int32_t> seen_;  // ascending, unique
  std::vector<std::pair<float, int32_t>> candidates_;
};

struct GenerateOptions {
  SamplingOptions sampling = {};
  int64_t max_tokens = 128;            ///< new tokens at most
  std::vector<std::string> stop = {};  ///< text ends before the first of these
  bool ignore_eos = false;             ///< go on past end-of-sequence tokens: the model's and the tokenizer's
  /// Asked after the prompt and after every token: true ends the text there.
  std::function<bool()> interrupted = {};
};

struct GenerateResult {
  std::vector<int32_t> prompt_tokens;
  std::vector<int32_t> tokens;  ///< new ones, the final end-of-sequence token included
  std::string text;             ///< of the new tokens, cut before a stop string
  std::string stop_reason;      ///< "length", "eos", "stop", "interrupted", or "context": the model's is full
  int64_t reused_tokens = 0;    ///< of the prompt, that a session had seen before
  double prompt_seconds = 0;    ///< time for the prompt, up to the first new token's logits
  double decode_seconds = 0;    ///< time for the decode steps after it
};

/// Receives new text piece by piece, always whole UTF-8 characters, never part of a stop string; the pieces add up to
/// the result's `text`.
using OnText = std::function<void(std::string_view)>;

/// The tokens of a prompt as `generate` runs them. An empty prompt becomes the beginning-of-text token of the tokenizer
/// or the model. Throws `Error` when there is none, `ContextError` when the context does not hold the
/// prompt.
std::vector<int32_t> prompt_tokens(const Model& model, const Tokenizer& tokenizer, std::string_view prompt);

/// Continues `prompt`. Throws `Error` as `prompt_tokens`, and for options out of range, before any text.
GenerateResult generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                        const GenerateOptions& options = {}, const OnText& on_text = {});

/// Continues each prompt, one after the other, exactly as `generate` does each alone. All prompts are checked before
/// any text. `on_text` also gets the index of the prompt. An interrupted result is the last.
std::vector<GenerateResult> generate_all(const Model& model, const Tokenizer& tokenizer,
                                         std::span<const std::string> prompts, const GenerateOptions& options = {},
                                         const std::function<void(size_t, std::string_view)>& on_text = {});

/// Continues one text again and again, and runs only what is new of it.
class Session {
 public:
  /// Both must outlive it.
  Session(const Model& model, const Tokenizer& tokenizer);

  /// Continues `tokens`. If they begin with all that was run before, only the rest is run; otherwise everything is.
  /// Throws `Error` for no tokens and for options out of range, `ContextError` for more tokens than the context holds.
  GenerateResult generate(std::span<const int32_t> tokens, const GenerateOptions& options = {},
                          const OnText& on_text = {});

  /// Forgets what was run.
  void reset();

 private:
  void run(std::span<const int32_t> tokens);
  void run_prompt(std::span<const int32_t> tokens, GenerateResult& result);

  const Model& model_;
  const Tokenizer& tokenizer_;
  State state_;
  std::vector<int32_t> seen_;  // what state_ has seen
  std::vector<float> logits_;  // after the last of them
};

}  // namespace hxq
