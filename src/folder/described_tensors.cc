#include "folder/described_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "hxq/error.h"

namespace hxq {
namespace {

bool has_key(const Checkpoint& checkpoint, const std::string& key) {
  return checkpoint.tensors().contains(key) || checkpoint.unsupported().contains(key);
}

/// Whether a part that some codec needs is stored for the parameter.
bool has_needed_part(const Checkpoint& checkpoint, std::string_view name) {
  const std::string_view module = module_of(name);
  return std::ranges::any_of(codecs(), [&](const Codec* codec) {
    return std::ranges::any_of(codec->parts, [&](const PartSpec& part) {
      return part.kind == PartSpec::Kind::needed && has_key(checkpoint, part_key(module, part.suffix));
    });
  });
}

/// A name's layer, and what follows it.
struct InLayer {
  int64_t layer;
  std::string_view rest;
};

std::optional<InLayer> in_layer(std::string_view name, std::string_view layer_prefix) {
  if (layer_prefix.empty() || !name.starts_with(layer_prefix)) return std::nullopt;
  const std::string_view text = name.substr(layer_prefix.size());
  const char* end = text.data() + text.size();
  InLayer found{};
  const auto [dot, fault] = std::from_chars(text.data(), end, found.layer);
  if (fault != std::errc() || dot == end || *dot != '.' || found.layer < 0) return std::nullopt;
  found.rest = {dot + 1, end};
  return found;
}

}  // namespace

std::optional<StoredTensor> find_described(const Checkpoint& checkpoint, const WeightDesc& desc) {
  std::optional<StoredTensor> stored = find_tensor(checkpoint, desc.name);
  if (!stored) {
    if (desc.optional && !has_needed_part(checkpoint, desc.name)) return std::nullopt;
    throw Error(fmt::format("missing; the configuration expects it with shape {}", to_string(desc.shape)),
                checkpoint.place(desc.name));
  }
  if (!stored->codec && stored->shape != desc.shape) {
    throw Error(fmt::format("shape is {}, expected {}", to_string(stored->shape), to_string(desc.shape)),
                checkpoint.place(desc.name));
  }
  return stored;
}

std::vector<std::string> tensors_of_more_layers(const Checkpoint& checkpoint, const ModelDesc& model) {
  std::set<int64_t> layers;
  const auto add_layer = [&](std::string_view key) {
    const std::optional<InLayer> found = in_layer(key, model.layer_prefix);
    if (found && found->layer >= static_cast<int64_t>(model.blocks.size())) layers.insert(found->layer);
  };
  for (const auto& [key, tensor] : checkpoint.tensors()) add_layer(key);
  for (const auto& [key, dtype] : checkpoint.unsupported()) add_layer(key);

  if (layers.empty()) return {};
  std::vector<std::string_view> parts;
  for (const WeightDesc& weight : model.weights) {
    const std::optional<InLayer> found = in_layer(weight.name, model.layer_prefix);
    if (found && std::ranges::find(parts, found->rest) == parts.end()) parts.push_back(found->rest);
  }
  std::vector<std::string> names;
  for (const int64_t layer : layers) {
    for (const std::string_view part : parts) {
      std::string name = fmt::format("{}{}.{}", model.layer_prefix, layer, part);
      if (find_tensor(checkpoint, name)) names.push_back(std::move(name));
    }
  }
  return names;
}

void check_layer_count(const Checkpoint& checkpoint, const ModelDesc& model) {
  const std::vector<std::string> names = tensors_of_more_layers(checkpoint, model);
  if (names.empty()) return;
  throw Error(fmt::format("is of a layer beyond the {} of the configuration (num_hidden_layers)", model.blocks.size()),
              checkpoint.place(names.front()));
}

}  // namespace hxq
