#pragma once

#include <filesystem>

#include "io/checkpoint_contents.h"

namespace hxq {

/// Whether the folder holds a `.cdnav3` tree: folders `*.cdnav3` or files `*.npy`.
bool is_cdnav3_tree(const std::filesystem::path& root);

/// Adds the tensors of the tree to `contents`, under the keys of safetensors files. Throws `Error` if a part is missing
/// or malformed.
///
/// An exact `.npy` without its `.meta.json` (written by old versions) goes by its file name with '_' read as '.',
/// unless that name is taken: the true name is lost.
void read_cdnav3_tree(const std::filesystem::path& root, CheckpointContents& contents);

}  // namespace hxq
