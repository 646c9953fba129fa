#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hxq {

/// Typed access to the fields of a config.json. Every failure is an `Error` that names the file, the field and what was
/// expected. A field that is null counts as absent.
class ConfigReader {
 public:
  ConfigReader(const nlohmann::json& config, std::string file);

  bool has(std::string_view key) const;

  /// A positive integer, at most 2^31 - 1.
  int64_t size(std::string_view key) const;
  int64_t size_or(std::string_view key, int64_t fallback) const;
  /// An integer of at least 0, at most 2^31 - 1.
  int64_t count_or(std::string_view key, int64_t fallback) const;
  /// num_hidden_layers, at most 10000: each layer takes memory before its tensors are looked for.
  int64_t layer_count() const;
  /// A finite number.
  double number_or(std::string_view key, double fallback) const;
  /// What a norm adds to a variance: not negative.
  float epsilon_or(std::string_view key, double fallback) const;
  /// A list of numbers, infinity among them, bare or as {"__float__": "Infinity"}; empty when absent.
  std::vector<double> numbers(std::string_view key) const;
  bool flag_or(std::string_view key, bool fallback) const;
  /// Whether the field is this very string.
  bool is_text(std::string_view key, std::string_view text) const;
  std::string text_or(std::string_view key, std::string_view fallback) const;
  /// A field that is itself an object; nothing when it is absent or empty. Its messages name both keys.
  std::optional<ConfigReader> section(std::string_view key) const;
  /// A list of strings; empty when absent.
  std::vector<std::string> texts(std::string_view key) const;
  /// One token id or a list of them; empty when absent.
  std::vector<int32_t> token_ids(std::string_view key) const;

  [[noreturn]] void fail(std::string_view key, const std::string& expected) const;
  /// What `fail` says, without the file.
  std::string complaint(std::string_view key, const std::string& expected) const;

 private:
  const nlohmann::json* find(std::string_view key) const;

  const nlohmann::json& config_;
  std::string file_;
  std::string prefix_;  // "rope_scaling." in that section
};

}  // namespace hxq
