#include "compress/replaceable.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "compress/side_files.h"
#include "hxq/error.h"
#include "hxq/receipt.h"
#include "io/system_error.h"
#include "io/utf8.h"

namespace hxq {
namespace fs = std::filesystem;
namespace {

/// What compressions wrote whose receipts do not list the files.
constexpr std::array kOlderFiles = {
    "model.safetensors",
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "generation_config.json",
    "chat_template.*",
    "*.py",
    "*processor_config.json",
    "LICENSE*",
};

bool was_written(const Receipt& receipt, const std::string& name) {
  if (name == kReceiptFile) return true;
  if (!receipt.files.empty()) return std::ranges::find(receipt.files, name) != receipt.files.end();
  return std::ranges::any_of(
      kOlderFiles, [&](const char* pattern) { return fnmatch(pattern, name.c_str(), FNM_PERIOD | FNM_PATHNAME) == 0; });
}

}  // namespace

void check_replaceable(const fs::path& folder) {
  with_file_errors([&] {
    if (!fs::is_directory(fs::symlink_status(folder)) || !fs::exists(folder / kReceiptFile)) {
      throw Error(fmt::format("is not a folder that has {}, so it is not replaced", kReceiptFile),
                  {.file = folder.string()});
    }
    const std::optional<Receipt> receipt = read_receipt(folder);
    for (std::string& name : files_below(folder)) {
      const fs::file_type type = fs::symlink_status(folder / name).type();
      const bool is_plain = type == fs::file_type::regular || name.ends_with('/');
      if (is_plain && was_written(*receipt, to_valid_utf8(name))) continue;
      if (name.ends_with('/')) name.pop_back();
      throw Error(fmt::format("holds {}, which no compression wrote, so it is not replaced", name),
                  {.file = folder.string()});
    }
  });
}

}  // namespace hxq
