#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "text/token_table.h"

namespace hxq::text {

/// What tokenizer.json says, or would say for a tokenizer.model: its two long lists, and the rest as JSON.
struct TokenizerFile {
  std::string name;     ///< the file, for messages
  nlohmann::json json;  ///< all but the elements of model.vocab and model.merges, which are left empty
  StringList tokens;    ///< model.vocab
  std::vector<int32_t> ids;
  StringList merge_halves;  ///< model.merges, left and right of each in turn
  std::string fault;        ///< what is wrong with those lists, if anything

  // What only a tokenizer.model says.
  std::vector<uint32_t> merge_ranks = {};  ///< of each merge, equal ones included; empty: its place in the list
  StringList whole_tokens = {};            ///< tokens that a text is cut at before any merge
  std::optional<int32_t> bos = {}, eos = {}, pad = {}, unk = {};
};

/// Throws `Error` for a file that cannot be read or is not JSON. Faults of the lists are left in `fault`: whether they
/// matter depends on the type of the model.
TokenizerFile read_tokenizer_file(const std::filesystem::path& path);

}  // namespace hxq::text
