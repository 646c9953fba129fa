#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/json_part.h"
#include "text/normal_form.h"
#include "text/regex.h"

namespace hxq::text {

/// What is done to a text before it is split: types NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence.
class Normalizer {
 public:
  Normalizer() = default;  ///< changes nothing

  /// From the part "normalizer". Throws `Error` for an unknown type.
  explicit Normalizer(const JsonPart& part);

  std::string apply(std::string_view text) const;

 private:
  struct Prepend {
    std::string text;
  };
  struct Replace {
    Regex pattern;
    std::string content;
  };
  using Step = std::variant<NormalForm, Prepend, Replace>;

  void add(const JsonPart& part);

  std::vector<Step> steps_;
};

/// `text` with each match of `pattern` replaced by `content`.
std::string replace_matches(const Regex& pattern, std::string_view text, std::string_view content);

}  // namespace hxq::text
