#include "text/folder_tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_map>

#include "io/json.h"
#include "io/system_error.h"
#include "text/json_part.h"
#include "text/token_table.h"

namespace hxq::text {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 7> kNames = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                    "pad_token", "cls_token", "mask_token"};
constexpr std::array<std::string_view, 4> kFlags = {"single_word", "lstrip", "rstrip", "normalized"};

json token_object(std::string_view content, bool special) {
  return {{"id", 0},         {"content", content},     {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", !special}, {"special", special}};
}

/// A token as the files have it: its text, or an object with its properties.
json token_of(const JsonPart& part, bool special) {
  if (part.value().is_string()) return token_object(part.value().get_ref<const std::string&>(), special);
  if (!part.value().is_object()) part.fail("expected a token");
  json token = token_object(part.string("content"), special || part.boolean_or("special", false));
  for (const std::string_view flag : kFlags) token[flag] = part.boolean_or(flag, token[flag].get<bool>());
  return token;
}

/// An object that a file holds; an empty one without the file.
struct File {
  explicit File(const std::filesystem::path& path) : name(path.string()) {
    if (is_there(path)) ordered = load_ordered_json(path);
    members = ordered;
    if (!members.is_object()) root().fail("expected an object");
  }
  JsonPart root() const { return JsonPart(members, name, ""); }

  std::string name;
  nlohmann::ordered_json ordered = nlohmann::ordered_json::object();
  json members;
};

int64_t id_of(const JsonPart& tokens, const std::string& text) {
  const bool digits =
      !text.empty() && text.size() <= 8 && std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
  if (!digits) tokens.fail(fmt::format("found '{}', expected a token id", text));
  return std::stoll(text);
}

void add_named(const File& file, FolderTokens& tokens) {
  const JsonPart root = file.root();
  const auto add = [&](const std::string& name, const json& token) {
    const auto same = [&](const auto& other) { return !name.empty() && other.first == name; };
    const auto found = std::ranges::find_if(tokens.named, same);
    if (found == tokens.named.end()) {
      tokens.named.emplace_back(name, token);
    } else {
      found->second = token;
    }
  };
  for (const std::string_view name : kNames) {
    if (root.has(name)) add(std::string(name), token_of(root.child(name), true));
  }
  for (const auto& [key, value] : file.ordered.items()) {
    const bool is_known = std::ranges::find(kNames, key) != kNames.end();
    if (key.ends_with("_token") && !is_known && value.is_string()) add(key, token_of(root.child(key), true));
  }
  const std::string_view extra =
      root.has("extra_special_tokens") ? "extra_special_tokens" : "additional_special_tokens";
  if (!root.has(extra)) return;
  const JsonPart part = root.child(extra);
  if (part.value().is_object()) {
    for (const auto& [key, value] : file.ordered[extra].items()) add(key, token_of(part.child(key), true));
  } else {
    for (const JsonPart& token : root.items(extra)) add("", token_of(token, true));
  }
}

void add_listed(const JsonPart& listed, FolderTokens& tokens) {
  const auto is_named = [&](const std::string& content) {
    return std::ranges::any_of(tokens.named, [&](const auto& named) { return named.second["content"] == content; });
  };
  for (const auto& [content, id] : listed.value().items()) {
    tokens.added[listed.integer(content, 0, kMaxTokenId)] = token_object(content, is_named(content));
  }
}

}  // namespace

std::optional<std::string> FolderTokens::content_of(std::string_view name) const {
  const auto found = std::ranges::find_if(named, [&](const auto& token) { return token.first == name; });
  if (found == named.end()) return std::nullopt;
  return found->second["content"].get<std::string>();
}

FolderTokens read_folder_tokens(const std::filesystem::path& dir) {
  FolderTokens tokens;
  const File config(dir / "tokenizer_config.json");
  const JsonPart root = config.root();
  add_named(config, tokens);
  tokens.has_decoder = root.has("added_tokens_decoder");
  if (tokens.has_decoder) {
    const JsonPart decoder = root.child("added_tokens_decoder");
    if (!decoder.value().is_object()) decoder.fail("expected an object of ids and tokens");
    for (const auto& [id, token] : decoder.value().items()) {
      tokens.added[id_of(decoder, id)] = token_of(decoder.child(id), false);
    }
    return tokens;
  }
  add_named(File(dir / "special_tokens_map.json"), tokens);
  const File listed(dir / "added_tokens.json");
  add_listed(listed.root(), tokens);
  const auto place = [](const auto& token) { return std::ranges::find(kNames, token.first) - kNames.begin(); };
  std::ranges::stable_sort(tokens.named, {}, place);
  return tokens;
}

json merged_added_tokens(const json& listed, const FolderTokens& tokens) {
  if (!listed.is_array() && !listed.is_null()) return listed;
  json merged = listed.is_null() ? json::array() : listed;
  std::unordered_map<std::string, size_t> place;
  for (size_t i = 0; i < merged.size(); ++i) {
    const json& token = merged[i];
    if (token.is_object() && token.contains("content") && token["content"].is_string()) place[token["content"]] = i;
  }
  const auto add = [&](const json& token) {
    const auto [entry, is_new] = place.try_emplace(token["content"], merged.size());
    if (is_new) merged.push_back(token);
    return is_new ? nullptr : &merged[entry->second];
  };
  for (const auto& [id, token] : tokens.added) {
    json* known = add(token);
    if (known && tokens.has_decoder) *known = token;
  }
  for (const auto& [name, token] : tokens.named) {
    json* known = add(token);
    if (known && !name.empty()) (*known)["special"] = true;
  }
  return merged;
}

}  // namespace hxq::text
