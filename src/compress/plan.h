#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "compress/encoding.h"
#include "compress/policy.h"
#include "folder/model_folder.h"
#include "hxq/compress.h"

namespace hxq {

/// A tensor of the source and how it will be stored.
struct PlanEntry {
  std::string name;
  TensorView view;
  std::optional<Role> role;          ///< empty: the architecture does not name the tensor
  const Encoder* encoder = nullptr;  ///< null: stored exactly
  EncodeOptions options = {};        ///< the encoder's
};

/// "unlisted" for a tensor that the architecture does not name.
inline std::string_view role_name(const std::optional<Role>& role) noexcept {
  return role ? name_of(*role) : std::string_view("unlisted");
}

/// Roles of the tensors that the architecture names. Copies of shared tensors have the role of what they are copies of.
std::map<std::string, Role> roles_of(const ModelDesc& model);

/// What the options say of how matrices are stored.
EncodingChoice choice_of(const CompressOptions& options);

/// See `plan_compression`; entries are in order of name.
std::vector<PlanEntry> plan_entries(const ModelFolder& source, const CompressOptions& options);

}  // namespace hxq
