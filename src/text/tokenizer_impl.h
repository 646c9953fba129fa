#pragma once

#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "hxq/tokenizer.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/folder_tokens.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_file.h"

namespace hxq {

/// The parts of a tokenizer, in the order in which a text meets them.
struct Tokenizer::Impl {
  explicit Impl(text::TokenizerFile file);

  /// Which tokens begin and end a text, pad it and stand for what is unknown.
  void name_tokens(const text::FolderTokens& tokens);
  std::optional<int32_t> id_of(std::string_view token) const;
  std::optional<std::string_view> token_of(int32_t id) const;

  /// `text` must be valid UTF-8. plain: where special tokens are text.
  void encode_text(std::string_view text, std::span<const TextRange> plain, std::vector<int32_t>& out) const;

  void push(text::Decoder::Stream& stream, int32_t id, bool skip_special_tokens) const {
    if (skip_special_tokens && added.is_special(id)) return;
    if (const auto token = token_of(id)) stream.push(*token);
  }

  const text::Normalizer normalizer;
  const text::PreTokenizer pre_tokenizer;
  const text::Bpe model;
  const text::PostProcessor post_processor;
  const text::Decoder decoder;
  const text::AddedTokens added;
  const size_t size;
  std::optional<int32_t> bos, eos, pad, unk;

 private:
  Impl(text::TokenizerFile& file, const text::JsonPart& root);
  void encode_piece(text::Words& words, text::Bpe::Scratch& scratch, std::vector<int32_t>& out) const;
};

}  // namespace hxq
