#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "codec/stored_tensors.h"
#include "desc/model_desc.h"
#include "hxq/error.h"
#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// A model folder, opened: what it stores, and what its config.json says about it.
struct ModelFolder {
  Checkpoint checkpoint;
  std::optional<ModelDesc> known;  ///< the description, where the runtime knows the architecture
  /// Why the folder's blocks are not those of the description, which takes them for shared; empty if they are, or if
  /// there is none.
  std::optional<Error> untied = {};
  std::map<std::string, Shape> shapes = {};  ///< of the tensors that `known` names, by name

  /// Throws `Error` as `Checkpoint::open` does, and for a config.json with a fault.
  static ModelFolder open(const std::filesystem::path& path);

  /// The description of the model that the folder holds: `known`, unless its blocks are not shared.
  const ModelDesc* described() const noexcept { return known && !untied ? &*known : nullptr; }

  /// The shape of a stored tensor. Flat ones are told rows from columns where the architecture names the tensor.
  const Shape& shape_of(const StoredTensor& tensor) const;

  /// Throws `Error` for a tensor of a dtype that the project does not read, unless the architecture is known and does
  /// not name it.
  void check_dtypes() const;
};

}  // namespace hxq
