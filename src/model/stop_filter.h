#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hxq {

/// Passes streamed text on, but holds back what may be the beginning of a stop string.
class StopFilter {
 public:
  /// `stops`: empty strings are ignored.
  explicit StopFilter(const std::vector<std::string>& stops);

  /// Adds text and returns what is now certain to come before any stop string.
  std::string push(std::string_view text);

  /// The held-back text, once no more will come.
  std::string finish();

  /// A stop string has been seen; text after its start is dropped.
  bool stopped() const noexcept { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace hxq
