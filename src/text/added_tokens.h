#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hxq/tokenizer.h"
#include "text/json_part.h"
#include "text/normalizer.h"
#include "text/regex.h"
#include "text/string_finder.h"
#include "text/token_table.h"

namespace hxq::text {

/// The tokens of a vocabulary's "added_tokens", which are cut out of a text before anything else looks at it.
class AddedTokens {
 public:
  /// From the array "added_tokens" of `root`. A token that is in `vocab` has its id there; the others are numbered on
  /// from the end of it, as Hugging Face does whatever the file says.
  AddedTokens(const JsonPart& root, const TokenTable& vocab, const Normalizer& normalizer);

  /// A stretch of a text: an added token, or what lies between.
  struct Piece {
    size_t begin, end;
    std::optional<int32_t> id;
  };

  /// Cuts a text at the tokens that match as they are; special ones that reach into one of `plain` do not count.
  std::vector<Piece> cut_raw(std::string_view text, std::span<const TextRange> plain = {}) const {
    return cut(text, raw_, plain);
  }

  /// Cuts a normalized text at the tokens that match in normalized form, likewise.
  std::vector<Piece> cut_normalized(std::string_view text, std::span<const TextRange> plain = {}) const {
    return cut(text, normalized_, plain);
  }

  const TokenTable& table() const { return table_; }
  bool is_special(int32_t id) const { return special_.contains(id); }

 private:
  struct Token {
    bool single_word, lstrip, rstrip;
  };

  std::vector<Piece> cut(std::string_view text, const StringFinder& finder, std::span<const TextRange> plain) const;
  bool is_single_word(std::string_view text, size_t begin, size_t end) const;

  std::unordered_map<int32_t, Token> tokens_;
  std::unordered_map<int32_t, bool> special_;
  TokenTable table_;
  StringFinder raw_, normalized_;
  Regex word_;
};

}  // namespace hxq::text
