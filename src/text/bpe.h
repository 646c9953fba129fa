#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/flat_map.h"
#include "text/json_part.h"
#include "text/string_finder.h"
#include "text/token_table.h"
#include "text/tokenizer_file.h"

namespace hxq::text {

/// Byte-pair encoding (Sennrich et al., arXiv 1508.07909): the merges of a list, best rank first, leftmost first among
/// equals, applied to the characters of a word.
class Bpe {
 public:
  /// From the "model" of the file, whose lists it moves out. Throws `Error` for what does not fit together.
  Bpe(TokenizerFile& file, const JsonPart& model);

  /// What repeated calls reuse: the words met so far, and buffers. For one thread at a time, for one `Bpe`.
  class Scratch;

  /// Appends the ids of `word`, valid UTF-8.
  void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;

  const TokenTable& tokens() const { return tokens_; }

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;  // of the merged token
  };

  void add_merges(const TokenizerFile& file, const JsonPart& model);
  void encode_mergeable(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;
  void add_characters();
  void find_byte_tokens();

  std::optional<int32_t> character_id(char32_t c) const;
  bool may_join(char32_t left, char32_t right) const { return joints_.find(pair_key(left, right)) != nullptr; }
  int32_t unknown_id() const;

  void encode_chunk(std::string_view chunk, Scratch& scratch, std::vector<int32_t>& out) const;
  void add_symbols(std::string_view chunk, Scratch& scratch) const;
  void merge_symbols(Scratch& scratch) const;

  TokenTable tokens_;
  FlatMap64<Merge> merges_;              // by ids of left and right
  FlatMap64<int32_t> characters_;        // tokens of one character: id by code point
  std::vector<int32_t> low_characters_;  // the same for code points below its size, -1 for none
  FlatMap64<char> joints_;               // (last character of left, first of right) of all merges
  StringFinder whole_;                   // tokens cut out of a word before any merge
  std::vector<int32_t> byte_tokens_;     // ids of <0x00> to <0xFF>, -1 for none; empty without byte fallback
  std::optional<std::string> unknown_token_;
  std::string prefix_, suffix_;  // of characters that do not begin, and that end, a word
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;  // a word that is a token is that token, whatever the merges make of it
};

class Bpe::Scratch {
 private:
  friend class Bpe;

  static constexpr size_t kMaxCachedBytes = 255;
  static constexpr size_t kMaxCachedWords = size_t{1} << 17;

  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1 at the ends
    bool removed;
  };
  struct Candidate {
    uint32_t rank, at;
    int32_t id;
    bool operator>(const Candidate& other) const { return pair_key(rank, at) > pair_key(other.rank, other.at); }
  };
  struct Cached {
    uint64_t hash;
    uint32_t text, text_size;  // in texts_
    uint32_t ids, ids_size;    // in ids_
  };

  // Where in slots_ `chunk` is, or the free place for it.
  size_t slot_of(std::string_view chunk, uint64_t hash) const;
  void remember(std::string_view chunk, uint64_t hash, const int32_t* ids, size_t count);

  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
  std::string character_;
  std::vector<uint32_t> slots_ = std::vector<uint32_t>(1024);  // index into cached_ + 1, or 0
  std::vector<Cached> cached_;
  std::string texts_;
  std::vector<int32_t> ids_;
};

}  // namespace hxq::text
