#include "compress/completeness.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "folder/described_tensors.h"

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

/// Throws if only some of the parts that the module's codec needs are stored.
void check_module(const Checkpoint& checkpoint, const std::string& module) {
  const auto is_exact = [&](const std::string& name) {
    const TensorView* tensor = checkpoint.find(name);
    return tensor != nullptr && tensor->size() > 0;
  };
  if (codec_of(checkpoint, module) || is_exact(module) || is_exact(fmt::format("{}{}", module, kWeightSuffix))) return;
  const auto is_stored = [&](const PartSpec& part) {
    return checkpoint.find(part_key(module, part.suffix)) != nullptr ||
           (!part.older_name.empty() && checkpoint.find(part_key(module, part.older_name)) != nullptr);
  };
  for (const Codec* codec : codecs()) {
    const auto stored = std::ranges::find_if(codec->parts, is_stored);
    if (stored == codec->parts.end()) continue;
    const auto missing = std::ranges::find_if(
        codec->parts, [&](const PartSpec& part) { return part.kind == PartSpec::Kind::needed && !is_stored(part); });
    throw Error(fmt::format("is missing, but {}.{} is stored", module, stored->suffix),
                checkpoint.place(part_key(module, missing->suffix)));
  }
}

}  // namespace

std::vector<Error> completeness_faults(const ModelFolder& folder) {
  const Checkpoint& checkpoint = folder.checkpoint;
  std::vector<Error> faults;
  if (const ModelDesc* model = folder.described()) {
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
