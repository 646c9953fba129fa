#include "compress/completeness.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "codec/codebook_read.h"
#include "codec/model_tensors.h"
#include "codec/shared_copies.h"
#include "compress/known_shapes.h"

namespace hxq {
namespace {

template <class Check>
void collect(std::vector<Error>& faults, const Check& check) {
  try {
    check();
  } catch (const Error& error) {
    faults.push_back(error);
  }
}

/// The description of a model that has the tensors it names; empty where blocks that it takes for shared are not.
std::optional<ModelDesc> described_model(const Checkpoint& checkpoint) {
  std::optional<ModelDesc> model = known_model(checkpoint);
  if (!model) return std::nullopt;
  try {
    check_shared_copies(checkpoint, *model);
  } catch (const Error&) {
    return std::nullopt;
  }
  return model;
}

std::vector<std::string> listed_modules(const nlohmann::json& config) {
  const auto field = [](const nlohmann::json& json, const char* key) {
    return json.is_object() && json.contains(key) ? json[key] : nlohmann::json();
  };
  std::vector<std::string> modules;
  const nlohmann::json listed = field(field(config, "quantization_config"), "compressed_modules");
  if (!listed.is_array()) return modules;
  for (const nlohmann::json& module : listed) {
    if (module.is_string()) modules.push_back(module.get<std::string>());
  }
  return modules;
}

void check_module(const Checkpoint& checkpoint, const std::string& module) {
  const auto is_exact = [&](const std::string& name) {
    const TensorView* tensor = checkpoint.find(name);
    return tensor != nullptr && tensor->size() > 0;
  };
  if (is_compressed(checkpoint, module) || is_exact(module) || is_exact(module + ".weight")) return;
  const auto is_stored = [&](std::string_view part) { return checkpoint.find(fmt::format("{}.{}", module, part)); };
  const auto part = std::ranges::find_if(kModuleParts, is_stored);
  if (part == kModuleParts.end()) return;
  const std::string missing = module + (is_stored("codebook") ? ".indices" : ".codebook");
  throw Error(fmt::format("is missing, but {}.{} is stored", module, *part), checkpoint.place(missing));
}

}  // namespace

std::vector<Error> completeness_faults(const Checkpoint& checkpoint) {
  std::vector<Error> faults;
  if (const std::optional<ModelDesc> model = described_model(checkpoint)) {
    for (const WeightDesc& weight : model->weights) {
      collect(faults, [&] {
        if (!checkpoint.is_tree() || find_tensor(checkpoint, weight.name)) find_described(checkpoint, weight);
      });
    }
    collect(faults, [&] { check_layer_count(checkpoint, *model); });
  } else {
    for (const std::string& module : listed_modules(checkpoint.config())) {
      collect(faults, [&] { check_module(checkpoint, module); });
    }
  }
  return faults;
}

}  // namespace hxq
