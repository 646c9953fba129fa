#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "codec/policy.h"
#include "hxq/compress.h"
#include "io/checkpoint.h"

namespace hxq {

/// A tensor of the source and how it will be stored.
struct PlanEntry {
  std::string name;
  TensorView view;
  std::optional<Role> role;  ///< empty: the architecture does not name the tensor
  Codec codec = Codec::exact;
};

/// "unlisted" for a tensor that the architecture does not name.
inline std::string_view role_name(const std::optional<Role>& role) noexcept {
  return role ? name_of(*role) : std::string_view("unlisted");
}

/// The module that the parameter is stored under in compressed form.
inline std::string module_of(std::string_view name) {
  constexpr std::string_view kSuffix = ".weight";
  return std::string(name.ends_with(kSuffix) ? name.substr(0, name.size() - kSuffix.size()) : name);
}

/// See `plan_compression`; entries are in order of name.
std::vector<PlanEntry> plan_entries(const Checkpoint& source, const CompressOptions& options);

}  // namespace hxq
