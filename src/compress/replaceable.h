#pragma once

#include <filesystem>

namespace hxq {

/// Replacing a folder removes what is in it. Throws `Error`, naming what is in the way, unless `folder` is one that a
/// compression wrote and to which nothing was added since.
void check_replaceable(const std::filesystem::path& folder);

}  // namespace hxq
