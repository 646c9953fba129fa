#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/receipt.h"
#include "io/checkpoint.h"

namespace hxq {

class StagedFolder;

/// What a model folder holds beside its own weights, config.json and receipt. Paths are relative to the folder, sorted.
struct SideFiles {
  std::vector<std::filesystem::path> folders;  ///< those that are copied, empty ones included
  std::vector<std::filesystem::path> files;    ///< those that are copied
  std::vector<LeftOut> left_out;               ///< the others
};

/// Everything that is not weights is copied: tokenizer, templates, settings, model code, licences, whole folders. Left
/// out are other files of weights (but for those of the modules that modules.json lists), caches, hidden files, other
/// compressed models, and what is no file. `outputs`: folders that are being written, which do not belong to the
/// source. A source that is not a folder has no side files. Throws `Error` for a folder that cannot be read.
SideFiles find_side_files(const Checkpoint& source, std::span<const std::filesystem::path> outputs);

void copy_side_files(const std::filesystem::path& source, const SideFiles& files, const StagedFolder& target);

/// "left out: a, b (weights in another form); .git (hidden)"; empty if nothing was.
std::string left_out_text(const std::vector<LeftOut>& left_out);

/// Names of all files in a folder and those below it, relative and sorted; empty folders end in '/'.
std::vector<std::string> files_below(const std::filesystem::path& folder);

}  // namespace hxq
