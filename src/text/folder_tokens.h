#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace hxq::text {

/// What a folder says of tokens beside tokenizer.json or tokenizer.model: tokenizer_config.json,
/// special_tokens_map.json and added_tokens.json, read as transformers reads them. A token is an object as in
/// tokenizer.json's "added_tokens".
struct FolderTokens {
  /// By the id that the file gives: `added_tokens_decoder` of tokenizer_config.json, or else added_tokens.json.
  std::map<int64_t, nlohmann::json> added;
  bool has_decoder = false;  ///< there is an `added_tokens_decoder`: it overrules tokenizer.json
  /// What is named bos_token, eos_token, ..., and the extra special tokens; in the order in which they are added.
  std::vector<std::pair<std::string, nlohmann::json>> named;

  /// The content of the token of that name.
  std::optional<std::string> content_of(std::string_view name) const;
};

/// Throws `Error` naming file and part for a file that is malformed. Files that are not there say nothing.
FolderTokens read_folder_tokens(const std::filesystem::path& dir);

/// The tokens that tokenizer.json lists, then those that only the folder's other files name, each token once.
nlohmann::json merged_added_tokens(const nlohmann::json& listed, const FolderTokens& tokens);

}  // namespace hxq::text
