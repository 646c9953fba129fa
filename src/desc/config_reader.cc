#include "desc/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "hxq/error.h"
#include "io/json.h"

namespace hxq {
namespace {

/// The value for a message: one line, numbers that are not finite as they were written.
std::string one_line(const nlohmann::json& value) {
  std::string line;
  bool indentation = false;
  for (const char c : json_text(value)) {
    indentation = c == '\n' || (indentation && c == ' ');
    if (!indentation) line += c;
  }
  return line;
}

}  // namespace

ConfigReader::ConfigReader(const nlohmann::json& config, std::string file) : config_(config), file_(std::move(file)) {
  if (!config_.is_object()) throw Error("expected a JSON object", {.file = file_});
}

const nlohmann::json* ConfigReader::find(std::string_view key) const {
  const auto field = config_.find(key);
  return field == config_.end() || field->is_null() ? nullptr : &*field;
}

std::string ConfigReader::complaint(std::string_view key, const std::string& expected) const {
  const nlohmann::json* value = find(key);
  const std::string found = value ? one_line(*value).substr(0, 80) : "nothing";
  return fmt::format("\"{}{}\" is {}, expected {}", prefix_, key, found, expected);
}

void ConfigReader::fail(std::string_view key, const std::string& expected) const {
  throw Error(complaint(key, expected), {.file = file_});
}

bool ConfigReader::has(std::string_view key) const { return find(key) != nullptr; }

int64_t ConfigReader::size(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value || !value->is_number_integer() || value->get<int64_t>() < 1 ||
      value->get<int64_t>() > std::numeric_limits<int32_t>::max()) {
    fail(key, "a positive integer");
  }
  return value->get<int64_t>();
}

int64_t ConfigReader::size_or(std::string_view key, int64_t fallback) const { return has(key) ? size(key) : fallback; }

int64_t ConfigReader::count_or(std::string_view key, int64_t fallback) const {
  const nlohmann::json* value = find(key);
  if (!value) return fallback;
  if (!value->is_number_integer() || value->get<int64_t>() < 0 ||
      value->get<int64_t>() > std::numeric_limits<int32_t>::max()) {
    fail(key, "an integer of at least 0");
  }
  return value->get<int64_t>();
}

int64_t ConfigReader::layer_count() const {
  const int64_t layers = size("num_hidden_layers");
  if (layers > 10000) fail("num_hidden_layers", "at most 10000");
  return layers;
}

double ConfigReader::number_or(std::string_view key, double fallback) const {
  const nlohmann::json* value = find(key);
  if (!value) return fallback;
  if (!value->is_number() || !std::isfinite(value->get<double>())) fail(key, "a number");
  return value->get<double>();
}

float ConfigReader::epsilon_or(std::string_view key, double fallback) const {
  const auto value = static_cast<float>(number_or(key, fallback));
  if (!(value >= 0) || !std::isfinite(value)) fail(key, "a small number, not negative");
  return value;
}

std::vector<double> ConfigReader::numbers(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return {};
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const nlohmann::json infinity = {{"__float__", "Infinity"}};
  std::vector<double> numbers;
  if (!value->is_array()) fail(key, "a list of numbers");
  for (const nlohmann::json& item : *value) {
    numbers.push_back(item == infinity ? kInfinity : item.is_number() ? item.get<double>() : -kInfinity);
    if (!(numbers.back() > -kInfinity)) fail(key, "a list of numbers");
  }
  return numbers;
}

bool ConfigReader::flag_or(std::string_view key, bool fallback) const {
  const nlohmann::json* value = find(key);
  if (!value) return fallback;
  if (!value->is_boolean()) fail(key, "true or false");
  return value->get<bool>();
}

bool ConfigReader::is_text(std::string_view key, std::string_view text) const {
  const nlohmann::json* value = find(key);
  return value && value->is_string() && value->get_ref<const std::string&>() == text;
}

std::string ConfigReader::text_or(std::string_view key, std::string_view fallback) const {
  const nlohmann::json* value = find(key);
  if (!value) return std::string(fallback);
  if (!value->is_string()) fail(key, "a string");
  return value->get<std::string>();
}

std::optional<ConfigReader> ConfigReader::section(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_object()) fail(key, "an object");
  if (value->empty()) return std::nullopt;
  ConfigReader reader(*value, file_);
  reader.prefix_ = fmt::format("{}{}.", prefix_, key);
  return reader;
}

std::vector<std::string> ConfigReader::texts(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return {};
  const auto is_string = [](const nlohmann::json& item) { return item.is_string(); };
  if (!value->is_array() || !std::ranges::all_of(*value, is_string)) fail(key, "a list of strings");
  return value->get<std::vector<std::string>>();
}

std::vector<int32_t> ConfigReader::token_ids(std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (!value) return {};
  const auto id_of = [&](const nlohmann::json& item) {
    if (!item.is_number_integer() || item.get<int64_t>() < 0 ||
        item.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
      fail(key, "a token id or a list of token ids");
    }
    return item.get<int32_t>();
  };
  if (!value->is_array()) return {id_of(*value)};
  std::vector<int32_t> ids;
  for (const nlohmann::json& item : *value) ids.push_back(id_of(item));
  return ids;
}

}  // namespace hxq
