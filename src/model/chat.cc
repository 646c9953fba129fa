#include "hxq/chat.h"

#include <algorithm>

namespace hxq {
namespace {

constexpr std::string_view kSpace = " \t\n\r";

std::string_view without_leading_space(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(kSpace), text.size()));
}

std::string_view without_trailing_space(std::string_view text) {
  return text.substr(0, text.find_last_not_of(kSpace) + 1);
}

bool begins_with(std::span<const int32_t> tokens, std::span<const int32_t> beginning) {
  return tokens.size() >= beginning.size() && std::ranges::equal(tokens.first(beginning.size()), beginning);
}

bool ends_with(std::span<const int32_t> tokens, std::span<const int32_t> end) {
  return tokens.size() >= end.size() && std::ranges::equal(tokens.last(end.size()), end);
}

/// Those of `ranges` that end behind `begin`, counted from there.
std::vector<TextRange> last_ranges(std::span<const TextRange> ranges, size_t begin) {
  std::vector<TextRange> last;
  for (const TextRange& range : ranges) {
    if (range.end > begin) last.push_back({std::max(range.begin, begin) - begin, range.end - begin});
  }
  return last;
}

}  // namespace

Chat::Chat(const Model& model, const Tokenizer& tokenizer, const ChatTemplate& chat_template,
           std::optional<std::string> system)
    : tokenizer_(tokenizer),
      template_(chat_template),
      session_(model, tokenizer),
      system_messages_(system.has_value()),
      context_length_(model.info().context_length) {
  if (system) messages_.push_back({"system", std::move(*system)});
}

/// The tokens of a rendering, those of the last turn kept as they were where the rendering holds them.
std::vector<int32_t> Chat::next_tokens(const ChatText& rendering) const {
  std::vector<int32_t> whole = tokenizer_.encode(rendering.text, rendering.plain);
  if (tokens_.empty() || begins_with(whole, tokens_) || !rendering.text.starts_with(rendering_)) return whole;
  const std::string_view after = std::string_view(rendering.text).substr(rendering_.size());
  const std::string_view left = without_leading_space(answer_);
  for (const std::string_view answer :
       {std::string_view(answer_), left, without_trailing_space(answer_), without_trailing_space(left)}) {
    if (!after.starts_with(answer)) continue;
    const std::string_view new_text = after.substr(answer.size());
    const std::vector<int32_t> rest =
        tokenizer_.encode(new_text, last_ranges(rendering.plain, rendering.text.size() - new_text.size()));
    // Encoded by itself the rest can differ, as where a tokenizer puts a space before every text.
    if (rest.empty() || !ends_with(whole, rest)) continue;
    std::vector<int32_t> kept = tokens_;
    kept.insert(kept.end(), rest.begin(), rest.end());
    if (context_length_ > 0 && static_cast<int64_t>(kept.size()) > context_length_) break;
    return kept;
  }
  return whole;
}

GenerateResult Chat::say(std::string message, const GenerateOptions& options, const OnText& on_text) {
  const size_t before = messages_.size();
  messages_.push_back({"user", std::move(message)});
  try {
    ChatText rendering = template_.render(messages_, tokenizer_);
    GenerateResult result = session_.generate(next_tokens(rendering), options, on_text);
    std::vector<int32_t> tokens;
    if (result.stop_reason != StopReason::stop) {
      tokens = result.prompt_tokens;
      // The rendering has the end of the answer itself.
      const bool ended = result.stop_reason == StopReason::eos;
      tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end() - ended);
    }
    messages_.push_back({"assistant", result.text});
    rendering_ = std::move(rendering.text);
    answer_ = result.text;
    tokens_ = std::move(tokens);
    return result;
  } catch (...) {
    messages_.resize(before);
    throw;
  }
}

void Chat::reset() {
  messages_.resize(system_messages_);
  tokens_.clear();
}

}  // namespace hxq
