#include "hxq/chat.h"

namespace hxq {

Chat::Chat(const Model& model, const Tokenizer& tokenizer, const ChatTemplate& chat_template, std::string system)
    : tokenizer_(tokenizer), template_(chat_template), session_(model, tokenizer), system_messages_(!system.empty()) {
  if (!system.empty()) messages_.push_back({"system", std::move(system)});
}

GenerateResult Chat::say(std::string message, const GenerateOptions& options, const OnText& on_text) {
  const size_t before = messages_.size();
  messages_.push_back({"user", std::move(message)});
  try {
    const std::vector<int32_t> tokens = tokenizer_.encode(template_.render(messages_, tokenizer_), false);
    GenerateResult result = session_.generate(tokens, options, on_text);
    messages_.push_back({"assistant", result.text});
    return result;
  } catch (...) {
    messages_.resize(before);
    throw;
  }
}

void Chat::reset() { messages_.resize(system_messages_); }

}  // namespace hxq
