#include <fmt/format.h>

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

}  // namespace

struct ChatTemplate::Impl {
  jinja::Template jinja;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& dir) {
  if (const auto file = dir / "chat_template.jinja"; is_there(file)) return read(file);
  const auto path = dir / "tokenizer_config.json";
  if (!is_there(path)) return std::nullopt;
  const nlohmann::json json = load_json(path);
  const text::JsonPart config(json, path.string(), "");
  if (!config.has("chat_template")) return std::nullopt;
  const bool several = config.child("chat_template").value().is_array();
  const std::string source = several ? default_template(config) : config.string("chat_template");
  return ChatTemplate(std::unique_ptr<const Impl>(new Impl{jinja::Template(source, path.string())}));
}

ChatTemplate ChatTemplate::read(const std::filesystem::path& file) {
  const MappedFile mapped = MappedFile::open(file);
  const std::string_view source(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  if (!is_valid_utf8(source)) throw Error("is not UTF-8 text", {.file = file.string()});
  return ChatTemplate(std::unique_ptr<const Impl>(new Impl{jinja::Template(source, file.string())}));
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages, const Tokenizer& tokenizer,
                                 bool add_generation_prompt) const {
  ordered_json list = ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", to_valid_utf8(message.content)}});
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

}  // namespace hxq
