#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>

#include "jinja/builtins.h"
#include "jinja/letters.h"

namespace hxq::jinja {
namespace {

/// The attribute `path` ("a.b", or an index) of an item, as filters take it.
Value attribute_of(const Value& item, const Value& path) {
  if (!path.text()) return get_item(item, path);
  Value value = item;
  std::string_view rest = *path.text();
  while (true) {
    charge(1);
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string name(rest.substr(0, dot));
    int64_t index = 0;
    const auto [end, fault] = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool number = fault == std::errc() && end == name.data() + name.size();
    value = number ? get_item(value, index) : get_item(value, name);
    if (dot == rest.size()) return value;
    rest.remove_prefix(dot + 1);
  }
}

Value lower_if_text(const Value& value, bool case_sensitive) {
  return value.text() && !case_sensitive ? Value(lower(*value.text())) : value;
}

Value join(const Value& value, const Given& given) {
  const Bound arguments(given, "join", {"d", "attribute"});
  const std::string between = arguments[0] ? to_text(*arguments[0]) : "";
  std::string out;
  bool first = true;
  for (const Value& item : items_of(value)) {
    charge_text(between.size());
    if (!std::exchange(first, false)) out += between;
    out += to_text(arguments[1] ? attribute_of(item, *arguments[1]) : item);
    if (out.size() > kMaxTextBytes) break;  // Value refuses it
  }
  return out;
}

Value default_value(const Value& value, const Given& given) {
  const Bound arguments(given, "default", {"default_value", "boolean"});
  const bool absent = value.is_undefined() || (arguments.flag(1, false) && !value.truth());
  if (!absent) return value;
  return arguments[0] ? *arguments[0] : Value(std::string());
}

Value trimmed(const Value& value, const Given& given) {
  const Bound arguments(given, "trim", {"chars"});
  const bool spaces = !arguments[0] || arguments[0]->is_none();
  return std::string(strip(to_text(value), Side::both, spaces ? "" : arguments.text(0, "")));
}

Value json_text(const Value& value, const Given& given) {
  const Bound arguments(given, "tojson", {"indent", "ensure_ascii", "separators", "sort_keys"});
  for (size_t i : {size_t{1}, size_t{2}, size_t{3}}) {
    if (arguments[i] && arguments[i]->truth()) throw Fault("'tojson' takes only 'indent' here");
  }
  const bool one_line = !arguments[0] || arguments[0]->is_none();
  if (value.is_undefined()) throw Fault(fmt::format("'{}' is undefined", value.undefined_name()));
  return to_json(value, one_line ? -1 : static_cast<int>(std::clamp<int64_t>(arguments.integer(0, 0), 0, 64)));
}

Value indented(const Value& value, const Given& given) {
  const Bound arguments(given, "indent", {"width", "first", "blank"});
  const Value width = arguments[0] ? *arguments[0] : Value(int64_t{4});
  const std::string margin =
      width.text() ? *width.text()
                   : std::string(static_cast<size_t>(std::clamp<int64_t>(width.integer("'indent'"), 0, 1000)), ' ');
  const std::string text = to_text(value) + "\n";
  std::string out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const std::string line = text.substr(begin, end - begin);
    if (begin > 0) out += '\n';
    const bool wanted = begin == 0 ? arguments.flag(1, false) : !line.empty() || arguments.flag(2, false);
    charge_text(margin.size());
    out += (wanted ? margin : "") + line;
    begin = end + 1;
    if (out.size() > kMaxTextBytes) break;  // Value refuses it
  }
  return out;
}

Value rounded(const Value& value, const Given& given) {
  const Bound arguments(given, "round", {"precision", "method"});
  if (!value.is_number()) throw Fault(fmt::format("a {} cannot be rounded", value.type_name()));
  const double scale = std::pow(10.0, static_cast<double>(std::clamp<int64_t>(arguments.integer(0, 0), -300, 300)));
  const std::string method = arguments.text(1, "common");
  const double scaled = value.number() * scale;
  if (method == "common" && !value.is_float() && arguments.integer(0, 0) >= 0) return value.integer("");
  if (method == "ceil") return std::ceil(scaled) / scale;
  if (method == "floor") return std::floor(scaled) / scale;
  return std::nearbyint(scaled) / scale;
}

Value to_integer(const Value& value, const Given& given) {
  const Bound arguments(given, "int", {"default", "base"});
  const Value otherwise = arguments[0] ? *arguments[0] : Value(int64_t{0});
  double number = 0;
  if (value.is_number() && !value.is_float()) return value.integer("");
  if (value.is_float()) {
    number = value.number();
  } else if (value.text()) {
    const std::string text(strip(*value.text()));
    int64_t integer = 0;
    const size_t plus = text.starts_with('+');
    const auto [end, fault] = std::from_chars(text.data() + plus, text.data() + text.size(), integer);
    if (fault == std::errc() && end == text.data() + text.size()) return integer;
    const auto [real_end, real_fault] = std::from_chars(text.data() + plus, text.data() + text.size(), number);
    if (real_fault != std::errc() || real_end != text.data() + text.size()) return otherwise;
  } else {
    return otherwise;
  }
  if (!(std::abs(number) < 0x1p63)) return otherwise;
  return static_cast<int64_t>(number);
}

Value to_float(const Value& value, const Given& given) {
  const Bound arguments(given, "float", {"default"});
  if (value.is_number()) return value.number();
  const Value otherwise = arguments[0] ? *arguments[0] : Value(0.0);
  if (!value.text()) return otherwise;
  const std::string text(strip(*value.text()));
  double number = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), number);
  return fault == std::errc() && end == text.data() + text.size() ? Value(number) : otherwise;
}

Value absolute(const Value& value) {
  if (!value.is_number()) throw Fault(fmt::format("a {} has no absolute value", value.type_name()));
  return value.number() < 0 ? negative(value) : value;
}

Value end_item(const Value& value, bool last) {
  const std::vector<Value> items = items_of(value);
  if (items.empty()) return Undefined{last ? "the last of nothing" : "the first of nothing"};
  return last ? items.back() : items.front();
}

Value reversed(const Value& value) {
  std::vector<Value> items = items_of(value);
  std::ranges::reverse(items);
  if (!value.text()) return Value::list(std::move(items));
  std::string out;
  for (const Value& item : items) out += *item.text();
  return out;
}

Value sorted(const Value& value, const Given& given) {
  const Bound arguments(given, "sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items_of(value)) {
    const Value key = arguments[2] ? attribute_of(item, *arguments[2]) : item;
    keyed.emplace_back(lower_if_text(key, arguments.flag(1, false)), item);
  }
  const bool reverse = arguments.flag(0, false);
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    const int order = compare(a.first, b.first);
    return reverse ? order > 0 : order < 0;
  });
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return Value::list(std::move(items));
}

Value dict_sorted(const Value& value, const Given& given) {
  const Bound arguments(given, "dictsort", {"case_sensitive", "by", "reverse"});
  const std::string by = arguments.text(1, "key");
  Given sorting;
  sorting.named = {{"attribute", int64_t{by == "value"}},
                   {"case_sensitive", arguments.flag(0, false)},
                   {"reverse", arguments.flag(2, false)}};
  return sorted(call_method(value, "items", {}), sorting);
}

Value extreme(const Value& value, const Given& given, bool largest) {
  const Bound arguments(given, largest ? "max" : "min", {"case_sensitive", "attribute"});
  const std::vector<Value> items = items_of(value);
  if (items.empty()) return Undefined{"the extreme of nothing"};
  const auto key = [&](const Value& item) {
    return lower_if_text(arguments[1] ? attribute_of(item, *arguments[1]) : item, arguments.flag(0, false));
  };
  const Value* best = &items.front();
  Value best_key = key(*best);
  for (size_t i = 1; i < items.size(); ++i) {
    Value other_key = key(items[i]);
    const int order = compare(other_key, best_key);
    if (largest ? order <= 0 : order >= 0) continue;
    best = &items[i];
    best_key = std::move(other_key);
  }
  return *best;
}

Value unique(const Value& value, const Given& given) {
  const Bound arguments(given, "unique", {"case_sensitive", "attribute"});
  std::vector<Value> keys, items;
  for (const Value& item : items_of(value)) {
    const Value key = lower_if_text(arguments[1] ? attribute_of(item, *arguments[1]) : item, arguments.flag(0, false));
    if (std::ranges::any_of(keys, [&](const Value& known) { return equal(known, key); })) continue;
    constexpr size_t kMost = 4096;  // each is compared with all before
    if (keys.size() == kMost) throw Fault(fmt::format("'unique' of more than {} items", kMost));
    keys.push_back(key);
    items.push_back(item);
  }
  return Value::list(std::move(items));
}

Value sum(const Value& value, const Given& given) {
  const Bound arguments(given, "sum", {"attribute", "start"});
  Value total = arguments[1] ? *arguments[1] : Value(int64_t{0});
  for (const Value& item : items_of(value)) {
    total = operate(Operator::add, total, arguments[0] ? attribute_of(item, *arguments[0]) : item);
  }
  return total;
}

/// The arguments after the first `count`.
Given after(const Given& given, size_t count) {
  return {{given.values.begin() + static_cast<ptrdiff_t>(std::min(count, given.values.size())), given.values.end()},
          given.named};
}

Value mapped(const Value& value, const Given& given) {
  std::vector<Value> items;
  if (given.values.empty()) {
    const Bound arguments(given, "map", {"attribute", "default"});
    for (const Value& item : items_of(value)) {
      Value found = attribute_of(item, arguments.need(0));
      items.push_back(found.is_undefined() && arguments[1] ? *arguments[1] : std::move(found));
    }
  } else {
    const std::string& name = given.values[0].text("the filter of 'map'");
    constexpr size_t kMost = 16;  // 'map' can be the filter of 'map'
    if (given.values.size() > kMost) throw Fault(fmt::format("'map' with more than {} arguments", kMost));
    const Given rest = after(given, 1);
    for (const Value& item : items_of(value)) items.push_back(apply_filter(name, item, rest));
  }
  return Value::list(std::move(items));
}

/// select, reject, and the same by attribute.
Value selected(const Value& value, const Given& given, bool keep, bool by_attribute) {
  if (by_attribute && given.values.empty()) throw Fault("an attribute to select by is needed");
  const size_t at = by_attribute;
  const bool has_test = given.values.size() > at;
  const Given rest = after(given, at + 1);
  std::vector<Value> items;
  for (const Value& item : items_of(value)) {
    const Value tested = by_attribute ? attribute_of(item, given.values[0]) : item;
    const bool holds =
        has_test ? apply_test(given.values[at].text("the test of a selection"), tested, rest) : tested.truth();
    if (holds == keep) items.push_back(item);
  }
  return Value::list(std::move(items));
}

Value html_escaped(const Value& value) {
  std::string out = replace_all(to_text(value), "&", "&amp;");
  for (const auto& [from, to] : {std::pair{"<", "&lt;"}, {">", "&gt;"}, {"'", "&#39;"}, {"\"", "&#34;"}})
    out = replace_all(out, from, to);
  return out;
}

Value replaced(const Value& value, const Given& given) {
  const Bound arguments(given, "replace", {"old", "new", "count"});
  const int64_t most = arguments[2] && arguments[2]->is_none() ? -1 : arguments.integer(2, -1);
  return replace_all(to_text(value), to_text(arguments.need(0)), to_text(arguments.need(1)), most);
}

Value items_filter(const Value& value) {
  if (value.is_undefined()) return Value::list({});
  return call_method(value.dict() ? value : throw Fault(fmt::format("'items' of a {}", value.type_name())), "items",
                     {});
}

using FilterFunction = std::function<Value(const Value&, const Given&)>;

/// A filter without arguments.
FilterFunction plain(Value (*function)(const Value&)) {
  return [function](const Value& value, const Given& given) {
    const Bound none(given, "a filter without arguments", {});
    return function(value);
  };
}

const std::map<std::string, FilterFunction, std::less<>>& filters() {
  static const std::map<std::string, FilterFunction, std::less<>> table = {
      {"abs", plain(absolute)},
      {"capitalize", plain([](const Value& v) { return Value(capitalize(to_text(v))); })},
      {"count", plain([](const Value& v) { return Value(length_of(v)); })},
      {"d", default_value},
      {"default", default_value},
      {"dictsort", dict_sorted},
      {"e", plain(html_escaped)},
      {"escape", plain(html_escaped)},
      {"first", plain([](const Value& v) { return end_item(v, false); })},
      {"float", to_float},
      {"indent", indented},
      {"int", to_integer},
      {"items", plain(items_filter)},
      {"join", join},
      {"last", plain([](const Value& v) { return end_item(v, true); })},
      {"length", plain([](const Value& v) { return Value(length_of(v)); })},
      {"list", plain([](const Value& v) { return Value::list(items_of(v)); })},
      {"lower", plain([](const Value& v) { return Value(lower(to_text(v))); })},
      {"map", mapped},
      {"max", [](const Value& v, const Given& given) { return extreme(v, given, true); }},
      {"min", [](const Value& v, const Given& given) { return extreme(v, given, false); }},
      {"reject", [](const Value& v, const Given& given) { return selected(v, given, false, false); }},
      {"rejectattr", [](const Value& v, const Given& given) { return selected(v, given, false, true); }},
      {"replace", replaced},
      {"reverse", plain(reversed)},
      {"round", rounded},
      {"safe", plain([](const Value& v) { return v; })},
      {"select", [](const Value& v, const Given& given) { return selected(v, given, true, false); }},
      {"selectattr", [](const Value& v, const Given& given) { return selected(v, given, true, true); }},
      {"sort", sorted},
      {"string", plain([](const Value& v) { return Value(to_text(v)); })},
      {"sum", sum},
      {"title", plain([](const Value& v) { return Value(title(to_text(v), true)); })},
      {"tojson", json_text},
      {"trim", trimmed},
      {"unique", unique},
      {"upper", plain([](const Value& v) { return Value(upper(to_text(v))); })},
  };
  return table;
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Given& given) {
  charge(1);
  if (value.text()) charge_text(value.text()->size());
  const auto filter = filters().find(name);
  if (filter == filters().end()) throw Fault(fmt::format("the filter '{}' is not known here", name));
  return filter->second(value, given);
}

}  // namespace hxq::jinja
