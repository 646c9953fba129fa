#include "compress/known_shapes.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "desc/model_desc.h"

namespace hxq {

std::map<std::string, Shape> known_shapes(const Checkpoint& checkpoint) {
  const nlohmann::json& config = checkpoint.config();
  std::map<std::string, Shape> shapes;
  if (!config.is_object() || !config.contains("model_type") || !config["model_type"].is_string()) return shapes;
  const std::vector<std::string> known = known_architectures();
  if (std::ranges::find(known, config["model_type"].get<std::string>()) == known.end()) return shapes;
  for (const WeightDesc& weight : describe(config, (checkpoint.path() / "config.json").string()).weights) {
    shapes.emplace(weight.name, weight.shape);
  }
  return shapes;
}

}  // namespace hxq
