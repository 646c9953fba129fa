#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hxq {

class StreamDecoder;

/// A stretch of a text: bytes [begin, end).
struct TextRange {
  size_t begin = 0, end = 0;
};

/// Text to token ids and back, as the Hugging Face `tokenizers` library does it for byte-pair-encoding models.
///
/// Immutable after `load`; all members are safe to call from several threads at once. Truncation and padding settings
/// of the file are ignored, as `transformers` ignores them unless asked.
class Tokenizer {
 public:
  /// Reads `dir`/tokenizer.json, or where that is absent `dir`/tokenizer.model (SentencePiece, type BPE), and from
  /// `dir`/tokenizer_config.json, special_tokens_map.json and added_tokens.json, where there, which tokens begin and
  /// end a text and which are added to the vocabulary, with the ids that transformers gives them. A tokenizer.model is
  /// followed as SentencePiece does, but control pieces in a text are found as such, and add_bos_token, add_eos_token
  /// and added tokens count. Throws `Error` naming the file and the part for a file that is missing or malformed, or
  /// for a type of model, normalizer, pre-tokenizer, post-processor or decoder that is not known.
  static Tokenizer load(const std::filesystem::path& dir);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// The ids of `utf8`. Bytes that are not valid UTF-8 count as U+FFFD, one for each maximal ill-formed subsequence (as
  /// Python's `errors="replace"`). `add_special_tokens`: also those the post-processor puts around a text.
  /// Throws `Error` if the text has a character that the vocabulary cannot express and the file's unknown token is not
  /// in the vocabulary.
  std::vector<int32_t> encode(std::string_view utf8, bool add_special_tokens = true) const;

  /// The ids of `utf8`, which must be valid, with no special tokens added; special tokens that reach into one of
  /// `plain` are text like any other. Throws `Error` as above.
  std::vector<int32_t> encode(std::string_view utf8, std::span<const TextRange> plain) const;

  /// Where `utf8`, which must be valid, spells special tokens out.
  std::vector<TextRange> special_tokens_in(std::string_view utf8) const;

  /// The text of `ids`, always valid UTF-8. Ids that are not in the vocabulary are left out.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;

  /// How many tokens there are, added ones included. Ids may have gaps, so an id can be larger.
  size_t vocab_size() const noexcept;

  std::optional<int32_t> token_to_id(std::string_view token) const;

  /// The token as the vocabulary spells it (byte-level tokens in their stand-in characters). Lives as long as this.
  std::optional<std::string_view> id_to_token(int32_t id) const;

  /// The bytes that the token adds in the middle of a text, which may be part of a character; none for an id that is
  /// not in the vocabulary.
  std::string token_bytes(int32_t id) const;

  /// Whether `decode` leaves the id out by default.
  bool is_special(int32_t id) const;

  /// The tokens that tokenizer_config.json names, if it names them and they exist.
  std::optional<int32_t> bos_id() const noexcept;
  std::optional<int32_t> eos_id() const noexcept;
  std::optional<int32_t> pad_id() const noexcept;
  std::optional<int32_t> unk_id() const noexcept;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

/// Decodes ids as they arrive. All that `push` and the final `flush` return, joined, is what `Tokenizer::decode`
/// returns for all the ids at once; each returned piece is valid UTF-8 by itself.
class StreamDecoder {
 public:
  /// `tokenizer` must outlive this; it may be moved.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);

  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  /// The text that `id` completes: empty while a character, or whatever later ids could still change, is unfinished.
  std::string push(int32_t id);

  /// The rest, with U+FFFD for what stayed unfinished. The next `push` begins a new text.
  std::string flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hxq
