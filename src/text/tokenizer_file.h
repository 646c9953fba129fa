#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/token_table.h"

namespace hxq::text {

/// tokenizer.json, with its two long lists taken apart while parsing and the rest as JSON.
struct TokenizerFile {
  std::string name;     ///< the file, for messages
  nlohmann::json json;  ///< all but the elements of model.vocab and model.merges, which are left empty
  StringList tokens;    ///< model.vocab
  std::vector<int32_t> ids;
  StringList merge_halves;  ///< model.merges, left and right of each in turn
  std::string fault;        ///< what is wrong with those lists, if anything
};

/// Throws `Error` for a file that cannot be read or is not JSON. Faults of the lists are left in `fault`: whether they
/// matter depends on the type of the model.
TokenizerFile read_tokenizer_file(const std::filesystem::path& path);

/// The whole of a JSON file. Throws `Error` as above.
nlohmann::json read_json_file(const std::filesystem::path& path);

}  // namespace hxq::text
