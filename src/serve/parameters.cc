#include "serve/parameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "hxq/error.h"
#include "io/json.h"
#include "io/utf8.h"
#include "serve/api_error.h"

namespace hxq::serve {
namespace {

/// The beginning of a value's text, for messages.
std::string excerpt(const nlohmann::json& value) {
  constexpr size_t kMost = 60;
  if (value.is_structured() && value.size() > 8) return value.is_array() ? "a long list" : "an object";
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() <= kMost) return text;
  text.resize(kMost);
  return to_valid_utf8(text) + "...";
}

/// Refuses objects that have a member twice: which of them counts would depend on who reads it.
class NoMemberTwice : public JsonFilter {
 public:
  bool keep(int, JsonEvent event, nlohmann::json& value) override {
    if (event == JsonEvent::object_start) open_.emplace_back();
    if (event == JsonEvent::object_end) open_.pop_back();
    if (event == JsonEvent::key && !open_.back().insert(value.get<std::string>()).second) {
      const std::string name = to_valid_utf8(value.get<std::string>().substr(0, 60));
      throw bad_request(fmt::format("the body has '{}' twice in one object", name), name, "invalid_value");
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> open_;  // members of the objects around
};

nlohmann::json parsed_object(std::string_view body) {
  nlohmann::json object;
  NoMemberTwice filter;
  try {
    object = parse_json(body, "the body", &filter);
  } catch (const Error& error) {
    throw bad_request(fmt::format("the body is not JSON: {}", error.what()));
  }
  if (!object.is_object()) throw bad_request(fmt::format("the body is {}, expected an object", object.type_name()));
  return object;
}

}  // namespace

void refuse_value(std::string_view name, const std::string& expected, const nlohmann::json& found) {
  throw bad_request(fmt::format("{}: expected {}, found {}", name, expected, excerpt(found)), std::string(name),
                    "invalid_value");
}

Parameters::Parameters(std::string_view body) : object_(parsed_object(body)) {}

const nlohmann::json* Parameters::find(std::string_view name) {
  taken_.emplace(name);
  const auto at = object_.find(std::string(name));
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

bool Parameters::flag(std::string_view name, bool otherwise) {
  const nlohmann::json* value = find(name);
  if (!value) return otherwise;
  if (!value->is_boolean()) refuse_value(name, "true or false", *value);
  return value->get<bool>();
}

std::optional<int64_t> Parameters::integer(std::string_view name, int64_t low, int64_t high) {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  const bool fits = value->is_number_unsigned() ? value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                                                : value->is_number_integer();
  if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high) {
    const std::string bounds =
        high == INT64_MAX ? fmt::format("of {} or more", low) : fmt::format("from {} to {}", low, high);
    refuse_value(name, low == INT64_MIN ? "a whole number" : "a whole number " + bounds, *value);
  }
  return value->get<int64_t>();
}

std::optional<double> Parameters::number(std::string_view name, double low, double high, bool above_low) {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  const double found = value->is_number() ? value->get<double>() : NAN;
  if (!(above_low ? found > low : found >= low) || !(found <= high)) {
    refuse_value(name, fmt::format("a number {} {} and at most {}", above_low ? "above" : "of at least", low, high),
                 *value);
  }
  return found;
}

std::optional<std::string> Parameters::text(std::string_view name) {
  const nlohmann::json* value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_string()) refuse_value(name, "a text", *value);
  return value->get<std::string>();
}

std::vector<std::string> Parameters::texts(std::string_view name, size_t most) {
  const nlohmann::json* value = find(name);
  if (!value) return {};
  const nlohmann::json list = value->is_string() ? nlohmann::json::array({*value}) : *value;
  const auto is_text = [](const nlohmann::json& item) { return item.is_string() && item != ""; };
  if (!list.is_array() || list.empty() || list.size() > most || !std::ranges::all_of(list, is_text)) {
    refuse_value(name, fmt::format("a text, or a list of 1 to {}, none of them empty", most), *value);
  }
  return list.get<std::vector<std::string>>();
}

void Parameters::only(std::string_view name, std::initializer_list<nlohmann::json> values) {
  const nlohmann::json* value = find(name);
  if (!value || std::ranges::find(values, *value) != values.end()) return;
  throw bad_request(fmt::format("{} {} is not supported", name, excerpt(*value)), std::string(name),
                    "unsupported_value");
}

void Parameters::finish() const {
  for (const auto& [name, value] : object_.items()) {
    if (taken_.contains(name)) continue;
    const std::string shown = to_valid_utf8(name.substr(0, 60));
    throw bad_request(fmt::format("unknown parameter '{}'", shown), shown, "unknown_parameter");
  }
}

}  // namespace hxq::serve
