#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "hxq/chat.h"
#include "hxq/error.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/system_error.h"
#include "io/utf8.h"
#include "jinja/template.h"
#include "text/json_part.h"

namespace hxq {
namespace {

using nlohmann::ordered_json;

/// The template among several that serves plain conversations.
std::string default_template(const text::JsonPart& config) {
  for (const text::JsonPart& item : config.items("chat_template")) {
    if (item.string("name") == "default") return item.string("template");
  }
  config.child("chat_template").fail("expected a template with the name 'default'");
}

/// A character for private use that no message has. Messages are looked through once, whatever they hold.
std::string unused_character(std::span<const ChatMessage> messages) {
  // From U+10F000 on, the bytes are F4 8F, and two with 6 bits of the code each.
  constexpr char32_t kFirst = 0x10F000, kLast = 0x10FFFD;
  constexpr std::string_view kLead = "\xF4\x8F";
  std::array<bool, kLast - kFirst + 1> used = {};
  for (const ChatMessage& message : messages) {
    const std::string& text = message.content;
    for (size_t at = 0; (at = text.find(kLead, at)) != std::string::npos && at + 4 <= text.size(); at += 4) {
      const size_t code = static_cast<size_t>(text[at + 2] & 0x3F) << 6 | static_cast<size_t>(text[at + 3] & 0x3F);
      if (code < used.size()) used[code] = true;
    }
  }
  const auto found = std::ranges::find(used, false);
  if (found == used.end()) throw Error("the messages have every character for private use");
  return to_utf8(kFirst + static_cast<char32_t>(found - used.begin()));
}

/// Texts that are taken out of messages while a template is rendered; marks stand for them, which templates do not take
/// apart.
class Marked {
 public:
  explicit Marked(std::string character) : character_(std::move(character)) {}

  void take_out(std::string& message, std::span<const TextRange> ranges) {
    std::string rest;
    size_t done = 0;
    for (const TextRange& range : ranges) {
      if (range.begin < done) continue;
      rest.append(message, done, range.begin - done);
      rest += fmt::format("{0}{1}{0}", character_, taken_.size());
      taken_.push_back(message.substr(range.begin, range.end - range.begin));
      done = range.end;
    }
    message = rest + message.substr(done);
  }

  /// Puts them back into the rendering, and says where they are.
  std::vector<TextRange> put_back(std::string& rendering) const {
    std::vector<TextRange> ranges;
    std::string whole;
    size_t done = 0;
    for (size_t mark; (mark = rendering.find(character_, done)) != std::string::npos;) {
      const size_t digits = mark + character_.size();
      size_t number = taken_.size();
      const auto [end, fault] = std::from_chars(rendering.data() + digits, rendering.data() + rendering.size(), number);
      const auto after = static_cast<size_t>(end - rendering.data());
      if (fault != std::errc() || number >= taken_.size() ||
          rendering.compare(after, character_.size(), character_) != 0) {
        throw Error("the chat template takes apart what spells a special token in a message");
      }
      whole.append(rendering, done, mark - done);
      ranges.push_back({whole.size(), whole.size() + taken_[number].size()});
      whole += taken_[number];
      done = after + character_.size();
    }
    rendering = whole + rendering.substr(done);
    return ranges;
  }

 private:
  std::string character_;
  std::vector<std::string> taken_;
};

jinja::Template parsed_template(std::string_view source, const std::string& file) {
  constexpr size_t kMaxBytes = 1 << 20;
  if (source.size() > kMaxBytes) {
    throw Error(fmt::format("chat template of {} bytes, expected at most {}", source.size(), kMaxBytes),
                {.file = file});
  }
  if (!is_valid_utf8(source)) throw Error("is not UTF-8 text", {.file = file});
  if (const size_t nul = source.find('\0'); nul != source.npos) {
    throw Error("holds a NUL, expected UTF-8 text", {.file = file, .offset = nul});
  }
  return {source, file};
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Template jinja;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

const std::string& ChatTemplate::file() const noexcept { return impl_->jinja.file(); }

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& dir) {
  if (const auto file = dir / "chat_template.jinja"; is_there(file)) return read(file);
  const auto path = dir / "tokenizer_config.json";
  if (!is_there(path)) return std::nullopt;
  const nlohmann::json json = load_json(path);
  const text::JsonPart config(json, path.string(), "");
  if (!config.has("chat_template")) return std::nullopt;
  const bool several = config.child("chat_template").value().is_array();
  const std::string source = several ? default_template(config) : config.string("chat_template");
  return ChatTemplate(std::unique_ptr<const Impl>(new Impl{parsed_template(source, path.string())}));
}

ChatTemplate ChatTemplate::read(const std::filesystem::path& file) {
  const MappedFile mapped = MappedFile::open(file);
  const std::string_view source(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  return ChatTemplate(std::unique_ptr<const Impl>(new Impl{parsed_template(source, file.string())}));
}

std::string ChatTemplate::rendered(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                                   bool add_generation_prompt) const {
  ordered_json list = ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  ordered_json context = {{"messages", std::move(list)},
                          {"tools", nullptr},
                          {"documents", nullptr},
                          {"add_generation_prompt", add_generation_prompt}};
  const std::pair<const char*, std::optional<int32_t>> specials[] = {{"bos_token", tokenizer.bos_id()},
                                                                     {"eos_token", tokenizer.eos_id()},
                                                                     {"pad_token", tokenizer.pad_id()},
                                                                     {"unk_token", tokenizer.unk_id()}};
  for (const auto& [name, id] : specials) {
    if (const auto token = id ? tokenizer.id_to_token(*id) : std::nullopt) context[name] = std::string(*token);
  }
  return impl_->jinja.render(context);
}

ChatText ChatTemplate::render(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                              bool add_generation_prompt) const {
  std::vector<ChatMessage> taken_from(messages.begin(), messages.end());
  for (ChatMessage& message : taken_from) message.content = to_valid_utf8(message.content);
  Marked marked(unused_character(taken_from));
  for (ChatMessage& message : taken_from) {
    marked.take_out(message.content, tokenizer.special_tokens_in(message.content));
  }
  ChatText all = {.text = rendered(taken_from, tokenizer, add_generation_prompt), .plain = {}};
  all.plain = marked.put_back(all.text);
  return all;
}

std::vector<int32_t> ChatTemplate::tokens(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                                          bool add_generation_prompt) const {
  const ChatText all = render(messages, tokenizer, add_generation_prompt);
  return tokenizer.encode(all.text, all.plain);
}

}  // namespace hxq
