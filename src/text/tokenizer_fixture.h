#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "hxq/tokenizer.h"
#include "text/byte_level.h"

namespace hxq::testing {

/// A folder that goes away with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "hxq_tokenizer_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void write(const char* name, const std::string& text) const { std::ofstream(path_ / name) << text; }

 private:
  std::filesystem::path path_;
};

inline Tokenizer load_tokenizer(const nlohmann::json& spec, const std::string& config = {}) {
  const TemporaryFolder folder;
  folder.write("tokenizer.json", spec.dump());
  if (!config.empty()) folder.write("tokenizer_config.json", config);
  return Tokenizer::load(folder.path());
}

/// A tokenizer.json of a BPE model without any other part.
inline nlohmann::json bare_spec(nlohmann::json vocab, nlohmann::json merges) {
  return {{"version", "1.0"}, {"model", {{"type", "BPE"}, {"vocab", std::move(vocab)}, {"merges", std::move(merges)}}}};
}

/// One whose tokens are the 256 bytes, each its own id, with byte-level pre-tokenizer and decoder.
inline nlohmann::json byte_spec() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) {
    std::string token;
    text::append_byte_level(std::string(1, static_cast<char>(byte)), token);
    vocab[token] = byte;
  }
  nlohmann::json spec = bare_spec(vocab, nlohmann::json::array());
  spec["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  spec["decoder"] = {{"type", "ByteLevel"}};
  return spec;
}

inline nlohmann::json added_token(int id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", false}};
}

}  // namespace hxq::testing
