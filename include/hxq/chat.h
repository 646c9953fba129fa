#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/scheduler.h"

namespace hxq {

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// A conversation as text, special tokens spelled out: encode it with `plain`, without adding any.
struct ChatText {
  std::string text;
  std::vector<TextRange> plain;  ///< what spells special tokens in messages, ascending: text like any other
};

/// How a model was trained to see a conversation: a Jinja template, rendered as transformers' `apply_chat_template`
/// does. Whatever a template says, rendering it ends and reaches nothing outside.
class ChatTemplate {
 public:
  /// From `dir`/chat_template.jinja, or the chat_template of `dir`/tokenizer_config.json (of several, the one named
  /// "default"). Nothing when the folder has none. Throws `Error` naming file and line for a template with a fault.
  static std::optional<ChatTemplate> load(const std::filesystem::path& dir);

  /// From a file that holds a template. Throws `Error`.
  static ChatTemplate read(const std::filesystem::path& file);

  /// The file that it was read from, as it was named.
  const std::string& file() const noexcept;

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// The conversation as text. The template finds `messages`, `add_generation_prompt` (whether an answer is to come),
  /// and `bos_token`, `eos_token`, `pad_token` and `unk_token` where the tokenizer has them. Special tokens are those
  /// of the template: what spells one in a message is text, so that nobody's message can end itself and begin another.
  /// Throws `Error` for what the template refuses, and where it takes such a spelling apart.
  ChatText render(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                  bool add_generation_prompt = true) const;

  /// The tokens of `render`. Throws `Error` as that does.
  std::vector<int32_t> tokens(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                              bool add_generation_prompt = true) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<const Impl> impl);
  std::string rendered(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                       bool add_generation_prompt) const;
  std::unique_ptr<const Impl> impl_;
};

/// A conversation with a model. Where a new rendering begins with the last one and the answer (with or without white
/// space at the answer's ends), the answer's own tokens are kept and only what comes after them is run. Everything is
/// run again where the template changes earlier text, after an answer that a stop text cut, and where the rest cannot
/// be encoded by itself.
class Chat {
 public:
  /// The references must outlive it. `system`: the first message. Without one, some templates put one of their own.
  Chat(const Model& model, const Tokenizer& tokenizer, const ChatTemplate& chat_template,
       std::optional<std::string> system = {});

  /// Adds the message and the model's answer, which is returned. Throws `Error` as `ChatTemplate::render` and
  /// `Session::generate` do; the conversation is then as before.
  GenerateResult say(std::string message, const GenerateOptions& options = {}, const OnText& on_text = {});

  /// Back to the start, with the system message alone.
  void reset();

  const std::vector<ChatMessage>& messages() const noexcept { return messages_; }

 private:
  const Tokenizer& tokenizer_;
  const ChatTemplate& template_;
  Session session_;
  size_t system_messages_;
  std::vector<ChatMessage> messages_;

  std::vector<int32_t> next_tokens(const ChatText& rendering) const;

  // Of the last turn: the rendering, the answer, and the tokens of both; no tokens: start anew.
  std::string rendering_, answer_;
  std::vector<int32_t> tokens_;
  int64_t context_length_;
};

}  // namespace hxq
