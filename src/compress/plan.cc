#include "compress/plan.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "codec/stored_tensors.h"
#include "desc/model_desc.h"
#include "hxq/error.h"

namespace hxq {
namespace {

bool matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

bool matches_any(const std::vector<std::string>& patterns, const std::string& name) {
  return std::ranges::any_of(patterns, [&](const std::string& pattern) { return matches(pattern, name); });
}

/// A pattern that selects nothing is most likely misspelt.
void check_patterns(const std::vector<std::string>& patterns, const std::vector<PlanEntry>& plan) {
  for (const std::string& pattern : patterns) {
    if (std::ranges::none_of(plan, [&](const PlanEntry& entry) { return matches(pattern, entry.name); })) {
      throw Error(fmt::format("pattern '{}' matches no tensor of the model", pattern));
    }
  }
}

std::map<std::string, Role> roles_of(const Checkpoint& source) {
  const std::string config_file = (source.path() / "config.json").string();
  if (source.config().is_null()) {
    throw Error("not found; compression needs it to know what each tensor is for", {.file = config_file});
  }
  const ModelDesc desc = describe(source.config(), config_file);
  std::map<std::string, Role> roles;
  for (const WeightDesc& weight : desc.weights) {
    roles.emplace(weight.name, weight.role);
    const std::optional<StoredTensor> stored = find_tensor(source, weight.name);
    if (!stored && !weight.optional) {
      throw Error(fmt::format("missing; the configuration expects it with shape {}", to_string(weight.shape)),
                  source.place(weight.name));
    }
    if (stored && stored->shape != weight.shape) {
      throw Error(fmt::format("shape is {}, expected {}", to_string(stored->shape), to_string(weight.shape)),
                  source.place(weight.name));
    }
  }
  return roles;
}

}  // namespace

std::vector<PlanEntry> plan_entries(const Checkpoint& source, const CompressOptions& options) {
  if (!(options.sidecar_fraction >= 0 && options.sidecar_fraction <= 0.5)) {
    throw Error(fmt::format("sidecar fraction {}: expected 0 to 0.5", options.sidecar_fraction));
  }
  const std::vector<StoredTensor> tensors = list_tensors(source);
  for (const StoredTensor& tensor : tensors) {
    if (tensor.compressed) {
      throw Error("is compressed already; `hxq decompress` makes the folder dense", source.place(tensor.name));
    }
  }
  const std::map<std::string, Role> roles = roles_of(source);
  std::vector<PlanEntry> plan;
  for (const StoredTensor& tensor : tensors) {
    PlanEntry entry{.name = tensor.name, .view = *source.find(tensor.name), .role = {}, .codec = Codec::exact};
    if (const auto role = roles.find(tensor.name); role != roles.end()) {
      entry.role = role->second;
      const bool wanted = (options.only.empty() || matches_any(options.only, entry.name)) &&
                          !matches_any(options.keep, entry.name);
      if (wanted) entry.codec = choose_codec(role->second, entry.view.shape, entry.view.dtype);
    }
    plan.push_back(std::move(entry));
  }
  check_patterns(options.keep, plan);
  check_patterns(options.only, plan);
  return plan;
}

std::vector<PlannedTensor> plan_compression(const std::filesystem::path& source, const CompressOptions& options) {
  const Checkpoint checkpoint = Checkpoint::open(source);
  std::vector<PlannedTensor> planned;
  for (const PlanEntry& entry : plan_entries(checkpoint, options)) {
    planned.push_back({.name = entry.name,
                       .shape = entry.view.shape,
                       .dtype = std::string(name_of(entry.view.dtype)),
                       .role = std::string(role_name(entry.role)),
                       .codec = std::string(name_of(entry.codec)),
                       .source_bytes = static_cast<int64_t>(entry.view.bytes.size())});
  }
  return planned;
}

}  // namespace hxq
