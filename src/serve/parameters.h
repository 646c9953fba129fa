#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace hxq::serve {

/// The members of a request's JSON object. Functions take the member of a name and throw `ApiError` (400) if it is not
/// what is expected; null counts as absent. What nobody took is refused at the end, so that nothing is ignored.
class Parameters {
 public:
  /// Parses a request's body.
  explicit Parameters(std::string_view body);

  /// The member, or null.
  const nlohmann::json* find(std::string_view name);

  bool flag(std::string_view name, bool otherwise);
  std::optional<int64_t> integer(std::string_view name, int64_t low, int64_t high);
  /// At least `low`, or above it, and at most `high`.
  std::optional<double> number(std::string_view name, double low, double high, bool above_low = false);
  std::optional<std::string> text(std::string_view name);
  /// A text, or 1 to `most` of them in a list; none may be empty.
  std::vector<std::string> texts(std::string_view name, size_t most);

  /// A member that may say only what happens anyway.
  void only(std::string_view name, std::initializer_list<nlohmann::json> values);
  /// A label of the client's, which changes nothing.
  void label(std::string_view name) { find(name); }

  /// Refuses members that were not taken.
  void finish() const;

 private:
  nlohmann::json object_;
  std::set<std::string, std::less<>> taken_;
};

/// Throws `ApiError`: what was expected of the parameter.
[[noreturn]] void refuse_value(std::string_view name, const std::string& expected, const nlohmann::json& found);

}  // namespace hxq::serve
