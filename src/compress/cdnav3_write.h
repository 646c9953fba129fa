#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "codec/codebook/encode.h"
#include "hxq/tensor.h"

namespace hxq {

/// Writes a matrix as the folder `….cdnav3` of the tree `tree` (docs/format.md), which is made if need be: complete, or
/// not at all. A folder that an earlier call wrote for the same name is replaced. Returns what its stats.json says.
/// Throws `Error`, also as `encode_codebook`.
nlohmann::json write_cdnav3(const std::filesystem::path& tree, const std::string& name, const TensorView& source,
                            const CodebookOptions& options);

/// The same for a tensor that is stored exactly: `….npy`, widened to F32, and its meta file.
nlohmann::json write_cdnav3_exact(const std::filesystem::path& tree, const std::string& name, const TensorView& source);

}  // namespace hxq
