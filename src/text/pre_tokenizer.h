#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "text/json_part.h"
#include "text/regex.h"

namespace hxq::text {

/// A range of a text, in bytes.
struct Span {
  size_t begin = 0;
  size_t end = 0;
};

/// A piece of normalized text on its way into words.
struct Words {
  std::string text;
  std::vector<Span> spans = {};  ///< the words: ranges of `text`, not empty, in order
  bool at_start = false;         ///< whether the piece begins the whole text
};

/// What becomes of the matches of a pattern that splits.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// The split of a text into words: types ByteLevel, Digits, Metaspace, Sequence, Split.
class PreTokenizer {
 public:
  PreTokenizer() = default;  ///< leaves the text as one word

  /// From the part "pre_tokenizer". Throws `Error` for an unknown type.
  explicit PreTokenizer(const JsonPart& part);

  /// Splits the words further, and changes their text where a type does so.
  void apply(Words& words) const;

 private:
  struct Split {
    Regex pattern;
    SplitBehavior behavior;
    bool invert;  // what lies between the matches counts as match
  };
  struct ByteLevel {
    bool add_prefix_space;
    std::optional<Regex> pattern;
  };
  struct Metaspace {
    enum class Prepend { always, first, never };
    std::string replacement;
    Prepend prepend;
    std::optional<Regex> splitter;  // matches the replacement
  };
  using Step = std::variant<Split, ByteLevel, Metaspace>;

  void add(const JsonPart& part);
  static Split split_of(const JsonPart& part);
  static ByteLevel byte_level_of(const JsonPart& part);
  static Metaspace metaspace_of(const JsonPart& part);
  static void apply_step(const Split& step, Words& words);
  static void apply_step(const ByteLevel& step, Words& words);
  static void apply_step(const Metaspace& step, Words& words);

  std::vector<Step> steps_;
};

}  // namespace hxq::text
