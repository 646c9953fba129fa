#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "io/utf8.h"
#include "jinja/builtins.h"
#include "jinja/letters.h"

namespace hxq::jinja {
namespace {

constexpr std::array<std::string_view, 11> kDictMethods = {"clear", "copy",    "fromkeys",   "get",    "items", "keys",
                                                           "pop",   "popitem", "setdefault", "update", "values"};

std::vector<Value> split_at(const std::string& text, const std::string& separator, int64_t most) {
  if (separator.empty()) throw Fault("'split' at an empty text");
  std::vector<Value> parts;
  size_t begin = 0;
  while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
    const size_t end = find_text(text, separator, begin);
    if (end == std::string::npos) break;
    if (parts.size() == kMaxItems) throw Fault(fmt::format("a list of more than {} items", kMaxItems));
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + separator.size();
  }
  parts.emplace_back(text.substr(begin));
  return parts;
}

std::vector<Value> split_at_space(std::string_view text, int64_t most) {
  std::vector<Value> parts;
  text = strip(text, Side::left);
  while (!text.empty()) {
    size_t end = 0;
    const bool last = most >= 0 && static_cast<int64_t>(parts.size()) >= most;
    if (last) end = text.size();
    while (!last && end < text.size()) {
      const CodePoint c = first_code_point(text.substr(end));
      if (is_space(c.value)) break;
      end += c.size;
    }
    if (parts.size() == kMaxItems) throw Fault(fmt::format("a list of more than {} items", kMaxItems));
    parts.emplace_back(std::string(text.substr(0, end)));
    text = strip(text.substr(end), Side::left);
  }
  return parts;
}

std::vector<Value> split_lines(std::string_view text) {
  std::vector<Value> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    lines.emplace_back(std::string(line.ends_with('\r') ? line.substr(0, line.size() - 1) : line));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

bool has_end(const std::string& text, const Value& affix, bool at_start) {
  if (affix.list()) {
    return std::ranges::any_of(affix.list()->items, [&](const Value& one) { return has_end(text, one, at_start); });
  }
  const std::string& wanted = affix.text("what a text starts or ends with");
  charge(1);
  charge_text(wanted.size());
  return at_start ? text.starts_with(wanted) : text.ends_with(wanted);
}

int64_t find_in(const std::string& text, const std::string& wanted, bool from_end) {
  const size_t at = from_end ? find_last_text(text, wanted) : find_text(text, wanted);
  return at == std::string::npos ? -1
                                 : static_cast<int64_t>(characters_of(std::string_view(text).substr(0, at)).size());
}

Value strip_method(const std::string& text, const std::string& name, const Given& given) {
  const Bound arguments(given, name, {"chars"});
  const Side side = name == "lstrip" ? Side::left : name == "rstrip" ? Side::right : Side::both;
  const bool spaces = !arguments[0] || arguments[0]->is_none();
  if (!spaces && arguments.text(0, "").empty()) return text;
  return std::string(strip(text, side, spaces ? std::string() : arguments.text(0, "")));
}

Value split_method(const std::string& text, const std::string& name, const Given& given) {
  const Bound arguments(given, name, {"sep", "maxsplit"});
  const int64_t most = arguments.integer(1, -1);
  if (!arguments[0] || arguments[0]->is_none()) return Value::list(split_at_space(text, most));
  return Value::list(split_at(text, arguments.text(0, ""), most));
}

Value join_method(const std::string& text, const Value& items) {
  std::string out;
  bool first = true;
  for (const Value& item : items_of(items)) {
    if (!std::exchange(first, false)) out += text;
    const std::string& item_text = item.text("an item to join");
    charge_text(text.size() + item_text.size());
    out += item_text;
    if (out.size() > kMaxTextBytes) break;  // Value refuses it
  }
  return out;
}

Value text_method(const std::string& text, const std::string& name, const Given& given) {
  if (name == "strip" || name == "lstrip" || name == "rstrip") return strip_method(text, name, given);
  if (name == "split") return split_method(text, name, given);
  if (name == "startswith" || name == "endswith") {
    return has_end(text, Bound(given, name, {"prefix"}).need(0), name == "startswith");
  }
  if (name == "replace") {
    const Bound arguments(given, name, {"old", "new", "count"});
    return replace_all(text, arguments.need(0).text("'replace'"), arguments.need(1).text("'replace'"),
                       arguments.integer(2, -1));
  }
  if (name == "find" || name == "rfind") {
    return find_in(text, Bound(given, name, {"sub"}).need(0).text("'find'"), name == "rfind");
  }
  if (name == "count") {
    const std::string wanted = Bound(given, name, {"sub"}).need(0).text("'count'");
    if (wanted.empty()) return length_of(text) + 1;
    return static_cast<int64_t>(split_at(text, wanted, -1).size()) - 1;
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string affix = Bound(given, name, {"affix"}).need(0).text("an affix");
    if (name == "removeprefix") return text.starts_with(affix) ? text.substr(affix.size()) : text;
    return text.ends_with(affix) ? text.substr(0, text.size() - affix.size()) : text;
  }
  if (name == "join") return join_method(text, Bound(given, name, {"items"}).need(0));
  const Bound none(given, name, {});
  if (name == "upper") return upper(text);
  if (name == "lower") return lower(text);
  if (name == "title") return title(text);
  if (name == "capitalize") return capitalize(text);
  if (name == "splitlines") return Value::list(split_lines(text));
  const auto all = [&](auto holds) { return !text.empty() && std::ranges::all_of(text, holds); };
  if (name == "isdigit") return all([](char c) { return c >= '0' && c <= '9'; });
  if (name == "isspace") return !text.empty() && strip(text).empty();
  throw Fault(fmt::format("a text has no method '{}' here", name));
}

Value dict_method(const Dict& dict, const std::string& name, const Given& given) {
  if (name == "get") {
    const Bound arguments(given, name, {"key", "default"});
    const Value& key = arguments.need(0);
    const Value* found = key.text() ? dict.find(*key.text()) : nullptr;
    if (found) return *found;
    return arguments[1] ? *arguments[1] : Value(None{});
  }
  const Bound none(given, name, {});
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries) {
    if (name == "items") {
      items.push_back(Value::list({key, value}, true));
    } else if (name == "keys") {
      items.emplace_back(key);
    } else if (name == "values") {
      items.push_back(value);
    }
  }
  if (name == "items" || name == "keys" || name == "values") return Value::list(std::move(items));
  throw Fault(fmt::format("a dict has no method '{}' here", name));
}

Value list_method(const List& list, const std::string& name, const Given& given) {
  const auto is_item = [&, wanted = Bound(given, name, {"item"})](const Value& item) {
    return equal(item, wanted.need(0));
  };
  if (name == "count") return static_cast<int64_t>(std::ranges::count_if(list.items, is_item));
  if (name == "index") {
    const auto at = std::ranges::find_if(list.items, is_item);
    if (at == list.items.end()) throw Fault("'index' of what is not in the list");
    return static_cast<int64_t>(at - list.items.begin());
  }
  throw Fault(fmt::format("a list has no method '{}' here: lists do not change", name));
}

}  // namespace

bool is_dict_method(std::string_view name) { return std::ranges::find(kDictMethods, name) != kDictMethods.end(); }

Value call_method(const Value& object, const std::string& name, const Given& given) {
  if (object.text()) charge_text(object.text()->size());
  if (object.text()) return text_method(*object.text(), name, given);
  if (object.dict()) return dict_method(*object.dict(), name, given);
  if (object.list()) return list_method(*object.list(), name, given);
  if (object.loop() && name == "cycle") {
    if (given.values.empty()) throw Fault("'cycle' needs arguments");
    return given.values[object.loop()->index % given.values.size()];
  }
  if (object.is_undefined()) throw Fault(fmt::format("'{}' is undefined", object.undefined_name()));
  throw Fault(fmt::format("a {} has no method '{}'", object.type_name(), name));
}

}  // namespace hxq::jinja
