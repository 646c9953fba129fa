#include "compress/replaceable.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "compress/staged_folder.h"
#include "hxq/error.h"
#include "hxq/receipt.h"

namespace hxq {
namespace fs = std::filesystem;
namespace {

/// For receipts that do not list the files: whether compressions write some of that name.
bool may_be_written(std::string_view name) {
  return name == "model.safetensors" || name == "config.json" || is_side_file(name);
}

bool was_written(const Receipt& receipt, const std::string& name) {
  if (name == kReceiptFile) return true;
  if (receipt.files.empty()) return may_be_written(name);
  return std::ranges::find(receipt.files, name) != receipt.files.end();
}

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::vector<fs::path> entries;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) entries.push_back(entry.path());
  std::ranges::sort(entries);
  return entries;
}

/// The first file below a folder, or the folder itself if it has none.
fs::path first_file(const fs::path& path) {
  if (!fs::is_directory(fs::symlink_status(path))) return path;
  const std::vector<fs::path> entries = sorted_entries(path);
  return entries.empty() ? path : first_file(entries.front());
}

}  // namespace

void check_replaceable(const fs::path& folder) {
  if (!fs::is_directory(fs::symlink_status(folder)) || !fs::exists(folder / kReceiptFile)) {
    throw Error(fmt::format("is not a folder that has {}, so it is not replaced", kReceiptFile),
                {.file = folder.string()});
  }
  try {
    const std::optional<Receipt> receipt = read_receipt(folder);
    for (const fs::path& entry : sorted_entries(folder)) {
      const bool is_file = fs::is_regular_file(fs::symlink_status(entry));
      if (is_file && was_written(*receipt, entry.filename().string())) continue;
      throw Error(fmt::format("holds {}, which no compression wrote, so it is not replaced",
                              first_file(entry).lexically_relative(folder).string()),
                  {.file = folder.string()});
    }
  } catch (const fs::filesystem_error& error) {
    throw Error("cannot read: " + error.code().message(), {.file = error.path1().string()});
  }
}

}  // namespace hxq
