#include "desc/model_desc.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "desc/architectures.h"
#include "desc/config_reader.h"
#include "hxq/error.h"

namespace hxq {
namespace {

struct Architecture {
  std::string_view model_type;
  ModelDesc (*describe)(const ConfigReader& config);
};

constexpr Architecture kArchitectures[] = {
    {"llama", describe_llama}, {"mamba", describe_mamba},   {"mamba2", describe_mamba2},
    {"qwen2", describe_qwen2}, {"zamba2", describe_zamba2},
};

}  // namespace

std::string_view name_of(Role role) noexcept {
  switch (role) {
    case Role::embedding:
      return "embedding";
    case Role::projection:
      return "projection";
    case Role::head:
      return "head";
    case Role::conv:
      return "conv";
    case Role::norm:
      return "norm";
    case Role::ssm_parameter:
      return "ssm_parameter";
    case Role::bias:
      return "bias";
  }
  return "unknown";
}

WeightId ModelDesc::add(std::string name, Shape shape, Role role, bool optional) {
  weights.push_back({std::move(name), std::move(shape), role, optional});
  return static_cast<WeightId>(weights.size() - 1);
}

std::vector<std::string> known_architectures() {
  std::vector<std::string> names;
  for (const Architecture& architecture : kArchitectures) names.emplace_back(architecture.model_type);
  return names;
}

bool is_known(const nlohmann::json& config) noexcept {
  const auto text_of = [](const nlohmann::json& json) {
    return json.is_string() ? std::string_view(json.get_ref<const std::string&>()) : std::string_view();
  };
  const auto field = [&](const char* key) { return config.is_object() ? config.find(key) : config.end(); };
  const auto model_type = field("model_type");
  if (model_type == config.end() ||
      std::ranges::find(kArchitectures, text_of(*model_type), &Architecture::model_type) == std::end(kArchitectures)) {
    return false;
  }
  const auto classes = field("architectures");
  const auto is_causal = [&](const nlohmann::json& name) { return text_of(name).ends_with("ForCausalLM"); };
  return classes == config.end() || !classes->is_array() || std::ranges::any_of(*classes, is_causal);
}

ModelDesc describe(const nlohmann::json& config, const std::string& file) {
  const ConfigReader reader(config, file);
  const std::string model_type = reader.text_or("model_type", "");
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.model_type != model_type) continue;
    ModelDesc desc = architecture.describe(reader);
    desc.model_type = model_type;
    desc.eos_tokens = reader.token_ids("eos_token_id");
    if (const std::vector<int32_t> bos = reader.token_ids("bos_token_id"); !bos.empty()) desc.bos_token = bos.front();
    return desc;
  }
  throw UnknownArchitectureError(
      reader.complaint("model_type", fmt::format("one that is known here: {}", fmt::join(known_architectures(), ", "))),
      {.file = file});
}

}  // namespace hxq
