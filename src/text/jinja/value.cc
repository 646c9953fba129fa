#include "text/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "text/utf8.h"

namespace hxq::jinja {
namespace {

constexpr size_t kMaxKeys = 4096;  // of a dict, whose keys are searched one by one

/// Checks what goes into a list or dict, and returns the depth of that.
int depth_around(const Value& item, int depth) {
  if (item.space() || item.loop() || item.function()) {
    throw Fault(fmt::format("a {} cannot be put in a list or dict", item.type_name()));
  }
  if (item.depth() >= kMaxValueDepth) throw Fault(fmt::format("lists nested deeper than {}", kMaxValueDepth));
  return std::max(depth, item.depth() + 1);
}

bool equal_within(const Value& left, const Value& right, int64_t& budget);

bool equal_items(const List& left, const List& right, int64_t& budget) {
  return left.tuple == right.tuple && left.items.size() == right.items.size() &&
         std::ranges::equal(left.items, right.items,
                            [&](const Value& a, const Value& b) { return equal_within(a, b, budget); });
}

bool equal_entries(const Dict& left, const Dict& right, int64_t& budget) {
  if (left.entries.size() != right.entries.size()) return false;
  return std::ranges::all_of(left.entries, [&](const auto& entry) {
    const Value* other = right.find(entry.first);
    return other && equal_within(entry.second, *other, budget);
  });
}

bool equal_within(const Value& left, const Value& right, int64_t& budget) {
  if (--budget < 0) throw Fault("the values are too large to compare");
  if (left.is_number() && right.is_number()) {
    if (left.is_integer() && right.is_integer()) return left.integer("") == right.integer("");
    return left.number() == right.number();
  }
  if (left.text() && right.text()) return *left.text() == *right.text();
  if (left.list() && right.list())
    return left.list() == right.list() || equal_items(*left.list(), *right.list(), budget);
  if (left.dict() && right.dict())
    return left.dict() == right.dict() || equal_entries(*left.dict(), *right.dict(), budget);
  if (left.space() || right.space()) return left.space() == right.space();
  return (left.is_none() && right.is_none()) || (left.is_undefined() && right.is_undefined());
}

}  // namespace

Value::Value(std::string text) {
  if (text.size() > kMaxTextBytes) throw Fault(fmt::format("a text longer than {} MiB", kMaxTextBytes >> 20));
  data_ = std::make_shared<const std::string>(std::move(text));
}

Value Value::list(std::vector<Value> items, bool tuple) {
  if (items.size() > kMaxItems) throw Fault(fmt::format("a list of more than {} items", kMaxItems));
  int depth = 1;
  for (const Value& item : items) depth = depth_around(item, depth);
  Value value;
  value.data_ = std::make_shared<const List>(List{std::move(items), tuple, depth});
  return value;
}

Value Value::dict(std::vector<std::pair<std::string, Value>> entries) {
  if (entries.size() > kMaxKeys) throw Fault(fmt::format("a dict of more than {} keys", kMaxKeys));
  Dict dict;
  for (auto& [key, item] : entries) {
    dict.depth = depth_around(item, dict.depth);
    const auto known =
        std::ranges::find(dict.entries, key, [](const auto& entry) { return std::string_view(entry.first); });
    if (known == dict.entries.end()) {
      dict.entries.emplace_back(key, std::move(item));
    } else {
      known->second = std::move(item);
    }
  }
  Value value;
  value.data_ = std::make_shared<const Dict>(std::move(dict));
  return value;
}

Value Value::from_json(const nlohmann::ordered_json& json) {
  if (json.is_null()) return None{};
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    std::vector<Value> items;
    for (const auto& item : json) items.push_back(from_json(item));
    return list(std::move(items));
  }
  std::vector<std::pair<std::string, Value>> entries;
  for (const auto& [key, item] : json.items()) entries.emplace_back(key, from_json(item));
  return dict(std::move(entries));
}

double Value::number() const {
  if (const bool* flag = std::get_if<bool>(&data_)) return *flag;
  if (const int64_t* integer = std::get_if<int64_t>(&data_)) return static_cast<double>(*integer);
  return std::get<double>(data_);
}

int64_t Value::integer(const char* of) const {
  if (const bool* flag = std::get_if<bool>(&data_)) return *flag;
  if (const int64_t* integer = std::get_if<int64_t>(&data_)) return *integer;
  throw Fault(fmt::format("{} is a {}, expected an integer", of, type_name()));
}

const std::string& Value::text(const char* of) const {
  if (const std::string* value = text()) return *value;
  throw Fault(fmt::format("{} is a {}, expected a text", of, type_name()));
}

std::string_view Value::type_name() const {
  constexpr std::string_view kNames[] = {"undefined", "None", "bool",      "int",  "float",   "str",
                                         "list",      "dict", "namespace", "loop", "function"};
  return kNames[data_.index()];
}

bool Value::truth() const {
  if (is_number()) return number() != 0;
  if (text()) return !text()->empty();
  if (list()) return !list()->items.empty();
  if (dict()) return !dict()->entries.empty();
  return !is_none() && !is_undefined();
}

int Value::depth() const { return list() ? list()->depth : dict() ? dict()->depth : 0; }

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name == key) return &value;
  }
  return nullptr;
}

bool equal(const Value& left, const Value& right) {
  int64_t budget = 1'000'000;
  return equal_within(left, right, budget);
}

int compare(const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_integer() && right.is_integer())
      return (left.integer("") > right.integer("")) - (left.integer("") < right.integer(""));
    return (left.number() > right.number()) - (left.number() < right.number());
  }
  if (left.text() && right.text()) return left.text()->compare(*right.text());
  throw Fault(fmt::format("a {} and a {} have no order", left.type_name(), right.type_name()));
}

std::vector<Value> items_of(const Value& value) {
  if (value.list()) return value.list()->items;
  std::vector<Value> items;
  if (value.text()) {
    const auto characters = characters_of(*value.text());
    if (characters.size() > kMaxItems) throw Fault(fmt::format("a list of more than {} items", kMaxItems));
    for (const std::string_view c : characters) items.emplace_back(std::string(c));
  } else if (value.dict()) {
    for (const auto& [key, item] : value.dict()->entries) items.emplace_back(key);
  } else if (!value.is_undefined()) {
    throw Fault(fmt::format("a {} has no items", value.type_name()));
  }
  return items;
}

int64_t length_of(const Value& value) {
  if (value.list()) return static_cast<int64_t>(value.list()->items.size());
  if (value.dict()) return static_cast<int64_t>(value.dict()->entries.size());
  if (value.text()) return static_cast<int64_t>(characters_of(*value.text()).size());
  if (value.is_undefined()) return 0;
  throw Fault(fmt::format("a {} has no length", value.type_name()));
}

std::vector<std::string_view> characters_of(std::string_view text) {
  std::vector<std::string_view> characters;
  for (size_t at = 0; at < text.size(); at += characters.back().size()) {
    characters.push_back(text.substr(at, text::first_code_point(text.substr(at)).size));
  }
  return characters;
}

bool is_space(char32_t c) { return (c >= 0x1C && c <= 0x1F) || text::is_white_space(c); }

std::string_view strip(std::string_view text, Side side, std::string_view characters) {
  const auto goes = [&](text::CodePoint c, std::string_view spelling) {
    return characters.empty() ? is_space(c.value) : characters.find(spelling) != characters.npos;
  };
  while (side != Side::right && !text.empty()) {
    const text::CodePoint c = text::first_code_point(text);
    if (!goes(c, text.substr(0, c.size))) break;
    text.remove_prefix(c.size);
  }
  while (side != Side::left && !text.empty()) {
    const text::CodePoint c = text::last_code_point(text);
    if (!goes(c, text.substr(text.size() - c.size))) break;
    text.remove_suffix(c.size);
  }
  return text;
}

}  // namespace hxq::jinja
