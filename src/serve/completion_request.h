#pragma once

#include <string_view>
#include <vector>

#include "hxq/generate.h"
#include "serve/parameters.h"
#include "serve/served_model.h"

namespace hxq::serve {

/// Choices that one request may ask for: prompts times `n`.
inline constexpr int64_t kMostChoices = 128;

/// What /v1/completions or /v1/chat/completions is asked for.
struct CompletionRequest {
  bool chat = false;
  std::vector<std::vector<int32_t>> prompts;
  int64_t shared_tokens = 0;  ///< of a chat's prompt, before its last message
  int64_t n = 1;              ///< choices of each prompt
  GenerateOptions options = {};
  bool stream = false;
  bool include_usage = false;  ///< in a stream

  int64_t choices() const noexcept { return n * std::ssize(prompts); }
  /// Tokens of the prompts of all choices.
  int64_t prompt_tokens() const noexcept;
  /// What is kept of a token until it is sent, as a number of tokens.
  int64_t token_weight() const noexcept;
  /// What all choices may have in all, prompts included, weighed by what an answer keeps of them.
  double most_tokens() const noexcept;
  /// Of choice `number`, which counts all choices of the first prompt, then those of the next. Choices of the same
  /// prompt differ by their seeds.
  const std::vector<int32_t>& prompt(int64_t number) const { return prompts[static_cast<size_t>(number / n)]; }
  GenerateOptions options_of(int64_t number) const;
};

/// Reads a request's body. Throws `ApiError`.
CompletionRequest read_completion_request(std::string_view body, const ServedModel& served);
CompletionRequest read_chat_request(std::string_view body, const ServedModel& served);

/// Takes "model" and throws `ApiError` (404) for another than the one that is served.
void check_model(Parameters& parameters, const ServedModel& served);

/// The parameter `name`: a text, a list of tokens, or a list of at most `most` of these. Texts become tokens. Throws
/// `ApiError`.
std::vector<std::vector<int32_t>> read_texts(Parameters& parameters, std::string_view name, int64_t most,
                                             const ServedModel& served);

/// `ids` as tokens of the model. Throws `ApiError` that names the parameter.
std::vector<int32_t> read_tokens(std::string_view name, const nlohmann::json& ids, const ServedModel& served);

}  // namespace hxq::serve
