#pragma once

#include <optional>
#include <string>

#include "hxq/chat.h"

namespace hxq::serve {

/// What is served. The references must outlive it.
struct ServedModel {
  const Model& model;
  const Tokenizer& tokenizer;
  const ChatTemplate* chat_template;  ///< null: there is none
  std::string name;                   ///< as clients call it
  int64_t created;                    ///< seconds since 1970
  int64_t context;                    ///< tokens of a prompt and its text, at most
  int64_t queued_tokens;  ///< of all prompts that wait or run, and of all that one request asks for, at most
};

}  // namespace hxq::serve
