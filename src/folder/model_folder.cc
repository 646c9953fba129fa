#include "folder/model_folder.h"

#include <nlohmann/json.hpp>

#include "folder/shared_copies.h"

namespace hxq {

ModelFolder ModelFolder::open(const std::filesystem::path& path) {
  ModelFolder folder{.checkpoint = Checkpoint::open(path), .known = {}};
  const nlohmann::json& config = folder.checkpoint.config();
  if (!is_known(config)) return folder;
  folder.known = describe(config, (path / "config.json").string());
  for (const WeightDesc& weight : folder.known->weights) folder.shapes.emplace(weight.name, weight.shape);
  try {
    check_shared_copies(folder.checkpoint, *folder.known);
  } catch (const Error& error) {
    folder.untied = error;
  }
  return folder;
}

const Shape& ModelFolder::shape_of(const StoredTensor& tensor) const {
  const auto found = shapes.find(tensor.name);
  return tensor.codec && found != shapes.end() ? found->second : tensor.shape;
}

void ModelFolder::check_dtypes() const {
  for (const auto& [name, dtype] : checkpoint.unsupported()) {
    if (shapes.empty() || shapes.contains(name)) checkpoint.find(name);  // throws
  }
}

}  // namespace hxq
