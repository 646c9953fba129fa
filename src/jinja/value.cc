#include "jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "io/utf8.h"

namespace hxq::jinja {
namespace {

thread_local Budget* current_budget = nullptr;

constexpr size_t kMaxKeys = 4096;  // of a dict, whose keys are searched one by one

/// Checks what goes into a list or dict, and returns the depth of that.
int depth_around(const Value& item, int depth) {
  if (item.space() || item.loop() || item.function()) {
    throw Fault(fmt::format("a {} cannot be put in a list or dict", item.type_name()));
  }
  if (item.depth() >= kMaxValueDepth) throw Fault(fmt::format("lists nested deeper than {}", kMaxValueDepth));
  return std::max(depth, item.depth() + 1);
}

bool equal_items(const List& left, const List& right) {
  return left.tuple == right.tuple && left.items.size() == right.items.size() &&
         std::ranges::equal(left.items, right.items, [](const Value& a, const Value& b) { return equal(a, b); });
}

bool equal_entries(const Dict& left, const Dict& right) {
  if (left.entries.size() != right.entries.size()) return false;
  return std::ranges::all_of(left.entries, [&](const auto& entry) {
    const Value* other = right.find(entry.first);
    return other && equal(entry.second, *other);
  });
}

}  // namespace

Budget::Budget(int64_t work) : work_(work), outer_(std::exchange(current_budget, this)) {}

Budget::~Budget() { current_budget = outer_; }

void charge(int64_t work) {
  if (!current_budget) return;
  current_budget->work_ -= work;
  if (current_budget->work_ < 0) throw Fault("the template does not end within the work it may do");
}

bool equal(const Value& left, const Value& right) {
  charge(1);
  if (left.is_number() && right.is_number()) {
    if (left.is_integer() && right.is_integer()) return left.integer("") == right.integer("");
    return left.number() == right.number();
  }
  if (left.text() && right.text()) {
    if (left.text() == right.text()) return true;
    if (left.text()->size() == right.text()->size()) charge_text(left.text()->size());
    return *left.text() == *right.text();
  }
  if (left.list() && right.list()) return left.list() == right.list() || equal_items(*left.list(), *right.list());
  if (left.dict() && right.dict()) return left.dict() == right.dict() || equal_entries(*left.dict(), *right.dict());
  if (left.space() || right.space()) return left.space() == right.space();
  return (left.is_none() && right.is_none()) || (left.is_undefined() && right.is_undefined());
}

Value::Value(Undefined undefined) {
  constexpr size_t kMaxName = 200;
  std::string& name = undefined.name;
  if (name.size() > kMaxName) {
    size_t size = kMaxName;
    while ((static_cast<unsigned char>(name[size]) & 0xC0) == 0x80) --size;
    name = name.substr(0, size) + "...";
  }
  data_ = std::move(undefined);
}

Value::Value(std::string text) {
  if (text.size() > kMaxTextBytes) throw Fault(fmt::format("a text longer than {} MiB", kMaxTextBytes >> 20));
  charge(2);  // a text takes the memory of about two items
  charge_text(text.size());
  data_ = std::make_shared<const std::string>(std::move(text));
}

Value Value::list(std::vector<Value> items, bool tuple) {
  if (items.size() > kMaxItems) throw Fault(fmt::format("a list of more than {} items", kMaxItems));
  charge(static_cast<int64_t>(items.size()));
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
    charge(static_cast<int64_t>(2 + dict.entries.size() / 16));
    charge_text(key.size());
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
  charge(static_cast<int64_t>(entries.size() / 16));
  for (const auto& [name, value] : entries) {
    if (name.size() != key.size()) continue;
    charge_text(key.size());
    if (name == key) return &value;
  }
  return nullptr;
}

int compare(const Value& left, const Value& right) {
  charge(1);
  if (left.is_number() && right.is_number()) {
    if (left.is_integer() && right.is_integer())
      return (left.integer("") > right.integer("")) - (left.integer("") < right.integer(""));
    return (left.number() > right.number()) - (left.number() < right.number());
  }
  if (left.text() && right.text()) {
    charge_text(std::min(left.text()->size(), right.text()->size()));
    return left.text()->compare(*right.text());
  }
  throw Fault(fmt::format("a {} and a {} have no order", left.type_name(), right.type_name()));
}

std::vector<Value> items_of(const Value& value) {
  if (value.list()) {
    charge(static_cast<int64_t>(value.list()->items.size()));
    return value.list()->items;
  }
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
  if (value.text()) {
    charge_text(value.text()->size());
    return std::ranges::count_if(*value.text(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
  }
  if (value.is_undefined()) return 0;
  throw Fault(fmt::format("a {} has no length", value.type_name()));
}

size_t find_text(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return text.npos;
  text.remove_prefix(from);
  const void* found = memmem(text.data(), text.size(), wanted.data(), wanted.size());
  const size_t at = found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : text.size();
  charge(1);
  charge_text(at + wanted.size());
  return found ? from + at : text.npos;
}

size_t find_last_text(std::string_view text, std::string_view wanted) {
  charge_text(text.size() + wanted.size());
  const size_t at = find_text(std::string(text.rbegin(), text.rend()), std::string(wanted.rbegin(), wanted.rend()));
  return at == text.npos ? at : text.size() - at - wanted.size();
}

std::vector<std::string_view> characters_of(std::string_view text) {
  charge(static_cast<int64_t>(text.size() / 16));
  std::vector<std::string_view> characters;
  for (size_t at = 0; at < text.size(); at += characters.back().size()) {
    characters.push_back(text.substr(at, first_code_point(text.substr(at)).size));
  }
  return characters;
}

bool is_space(char32_t c) { return (c >= 0x1C && c <= 0x1F) || is_white_space(c); }

std::string_view strip(std::string_view text, Side side, std::string_view characters) {
  const auto goes = [&](CodePoint c, std::string_view spelling) {
    charge_text(spelling.size() + characters.size() + 8);
    return characters.empty() ? is_space(c.value) : characters.find(spelling) != characters.npos;
  };
  while (side != Side::right && !text.empty()) {
    const CodePoint c = first_code_point(text);
    if (!goes(c, text.substr(0, c.size))) break;
    text.remove_prefix(c.size);
  }
  while (side != Side::left && !text.empty()) {
    const CodePoint c = last_code_point(text);
    if (!goes(c, text.substr(text.size() - c.size))) break;
    text.remove_suffix(c.size);
  }
  return text;
}

}  // namespace hxq::jinja
