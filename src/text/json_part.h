#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hxq::text {

/// One value within a JSON file, with where it is, so that every complaint names the file and the part.
/// The JSON must outlive it.
class JsonPart {
 public:
  JsonPart(const nlohmann::json& value, std::string file, std::string path)
      : value_(&value), file_(std::move(file)), path_(std::move(path)) {}

  /// Throws `Error` with the file and the path of this part.
  [[noreturn]] void fail(std::string_view what) const;

  /// Throws `Error` that `type` is not one of `known`.
  [[noreturn]] void fail_unknown(std::string_view type, std::span<const std::string_view> known) const;

  const nlohmann::json& value() const { return *value_; }
  const std::string& file() const { return file_; }
  bool is_null() const { return value_->is_null(); }

  /// Whether it is an object with a member `key` that is not null.
  bool has(std::string_view key) const;

  /// Members of an object, or items of an array. Throw `Error` if absent or of another type.
  JsonPart child(std::string_view key) const;
  std::vector<JsonPart> items(std::string_view key) const;
  std::string string(std::string_view key) const;
  bool boolean(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t lowest, int64_t highest) const;

  /// The same for members that may be absent or null.
  std::string string_or(std::string_view key, std::string_view otherwise) const;
  bool boolean_or(std::string_view key, bool otherwise) const;

  /// A string of one character, as its code point.
  char32_t character(std::string_view key) const;

 private:
  const nlohmann::json* value_;
  std::string file_;
  std::string path_;
};

}  // namespace hxq::text
