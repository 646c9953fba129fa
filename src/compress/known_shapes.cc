#include "compress/known_shapes.h"

#include <nlohmann/json.hpp>

namespace hxq {

std::optional<ModelDesc> known_model(const Checkpoint& checkpoint) {
  if (!is_known(checkpoint.config())) return std::nullopt;
  return describe(checkpoint.config(), (checkpoint.path() / "config.json").string());
}

std::map<std::string, Shape> known_shapes(const Checkpoint& checkpoint) {
  std::map<std::string, Shape> shapes;
  if (const std::optional<ModelDesc> model = known_model(checkpoint)) {
    for (const WeightDesc& weight : model->weights) shapes.emplace(weight.name, weight.shape);
  }
  return shapes;
}

void check_dtypes(const Checkpoint& checkpoint, const std::map<std::string, Shape>& shapes) {
  for (const auto& [name, dtype] : checkpoint.unsupported()) {
    if (shapes.empty() || shapes.contains(name)) checkpoint.find(name);  // throws
  }
}

}  // namespace hxq
