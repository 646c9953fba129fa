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

  /// Whether it takes what `Logits::most_likely` gives and needs no logits.
  bool is_greedy() const noexcept;
  /// Chooses that token. Throws as above.
  static int32_t choose(int32_t most_likely);

 private:
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
  int64_t logprobs = -1;               ///< tell each token's log probability, and the likeliest so many; < 0: nothing
  /// Asked before each step of the prompt and after every token: true ends the text there.
  std::function<bool()> interrupted = {};
};

/// Why a text ended.
enum class StopReason : uint8_t {
  length,       ///< it has as many tokens as were asked for
  eos,          ///< an end-of-sequence token came
  stop,         ///< a stop string came
  context,      ///< the model's context is full
  interrupted,  ///< `GenerateOptions::interrupted` said so
};

std::string_view name_of(StopReason reason) noexcept;

/// How likely a token was, by the model's own logits: before penalties, temperature and all that narrows the choice.
struct TokenLogprobs {
  float logprob = 0;                                ///< natural logarithm
  std::vector<std::pair<int32_t, float>> top = {};  ///< the likeliest tokens, likeliest first; ties: the lower id first
};

struct GenerateResult {
  std::vector<int32_t> prompt_tokens;
  std::vector<int32_t> tokens;          ///< new ones, the final end-of-sequence token included
  std::string text;                     ///< of the new tokens, cut before a stop string
  std::vector<TokenLogprobs> logprobs;  ///< of each of `tokens`, where they were asked for
  /// For each of `tokens`, the bytes of text that those before it complete. Text may be held back, or cut, before that.
  std::vector<size_t> text_offsets;
  StopReason stop_reason = StopReason::length;
  int64_t reused_tokens = 0;  ///< of the prompt, that a session had seen before
  double prompt_seconds = 0;  ///< from its first step to the first new token's logits
  double decode_seconds = 0;  ///< of the steps after that
};

/// Receives new text piece by piece, always whole UTF-8 characters, never part of a stop string; the pieces add up to
/// the result's `text`. May be empty: the text is then only in the result.
using OnText = std::function<void(std::string_view)>;

/// Throws `Error` for no tokens, `ContextError` for more than the model's context holds.
void check_prompt_length(const ModelInfo& model, int64_t tokens);

/// The tokens of a prompt as `generate` runs them. An empty prompt becomes the beginning-of-text token of the tokenizer
/// or the model. Throws `Error` when there is none, `ContextError` when the context does not hold the
/// prompt.
std::vector<int32_t> prompt_tokens(const Model& model, const Tokenizer& tokenizer, std::string_view prompt);

/// Continues `prompt`. Throws `Error` as `prompt_tokens`, and for options out of range, before any text.
GenerateResult generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                        const GenerateOptions& options = {}, const OnText& on_text = {});

/// Continues the prompts, many at a time: each exactly as `generate` does it alone. All prompts are checked before any
/// text. `on_text` also gets the index of the prompt; pieces of several prompts come in turn, and an empty one when a
/// prompt's text is complete. Results are in the order of the prompts; of interrupted ones they have what there was.
std::vector<GenerateResult> generate_all(const Model& model, const Tokenizer& tokenizer,
                                         std::span<const std::string> prompts, const GenerateOptions& options = {},
                                         const std::function<void(size_t, std::string_view)>& on_text = {});

}  // namespace hxq
