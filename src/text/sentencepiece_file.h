#pragma once

#include <filesystem>

#include "text/tokenizer_file.h"

namespace hxq::text {

/// Reads a SentencePiece tokenizer.model of type BPE, as Llama has it, and what its folder adds: add_bos_token,
/// add_eos_token and added_tokens_decoder of tokenizer_config.json, and added_tokens.json.
///
/// The result encodes as the SentencePiece library does, but for control pieces and added tokens, which are found in a
/// text like those of a tokenizer.json; what is between them is encoded as a text of its own. Decoding leaves unknown
/// pieces out. Throws `Error` for a file that is malformed, of another type, or with a normalization other than
/// "identity".
TokenizerFile read_sentencepiece_file(const std::filesystem::path& path);

}  // namespace hxq::text
