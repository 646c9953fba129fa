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
  int64_t max_tokens = 128;              ///< new tokens at most
  std::vector<std::string> stop = {};    ///< text ends before the first of these
  bool ignore_eos = false;               ///< go on past the end-of-sequence token
};

struct GenerateResult {
  std::vector<int32_t> prompt_tokens;
  std::vector<int32_t> tokens;  ///< new ones, the final end-of-sequence token included
  std::string text;             ///< of the new tokens, cut before a stop string
  std::string stop_reason;      ///< "length", "eos" or "stop"
  double prompt_seconds = 0;    ///< time for the prompt, up to the first new token's logits
  double decode_seconds = 0;    ///< time for the decode steps after it
};

/// Continues `prompt`. `on_text` gets the new text piece by piece, always whole UTF-8 characters, never part of a stop
/// string; the pieces add up to `text`. Throws `Error` for a prompt of no tokens and for options out of range.
GenerateResult generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                        const GenerateOptions& options = {},
                        const std::function<void(std::string_view)>& on_text = {});

}  // namespace hxq
