#include "codec/stored_tensors.h"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <optional>

namespace hxq {
namespace {

/// The name a compressed module's matrix has in the model.
std::string parameter_name(const Checkpoint& checkpoint, std::string_view module) {
  if (const std::string_view stated = checkpoint.parameter_of(module); !stated.empty()) return std::string(stated);
  if (checkpoint.tensors().contains(module)) return std::string(module);
  return fmt::format("{}{}", module, kWeightSuffix);
}

/// A key of a compressed module.
struct ModuleKey {
  std::string_view module;
  const Codec* codec;
  const PartSpec* part;
};

std::optional<ModuleKey> find_key(const Checkpoint& checkpoint, std::string_view key) {
  const size_t dot = key.rfind('.');
  if (dot == key.npos) return std::nullopt;
  const std::string_view module = key.substr(0, dot), suffix = key.substr(dot + 1);
  if (!is_part_suffix(suffix)) return std::nullopt;
  const Codec* codec = codec_of(checkpoint, module);
  if (codec == nullptr) return std::nullopt;
  const auto part = std::ranges::find_if(
      codec->parts, [&](const PartSpec& spec) { return spec.suffix == suffix || spec.older_name == suffix; });
  if (part == codec->parts.end()) return std::nullopt;
  return ModuleKey{module, codec, &*part};
}

/// An empty tensor that stands where the matrix of a compressed module would be.
bool is_stub(const Checkpoint& checkpoint, std::string_view key, const TensorView& tensor) {
  return tensor.size() == 0 &&
         (codec_of(checkpoint, key) != nullptr || codec_of(checkpoint, module_of(key)) != nullptr);
}

std::optional<StoredTensor> find_module(const Checkpoint& checkpoint, std::string_view module, std::string_view name) {
  const Codec* codec = codec_of(checkpoint, module);
  if (codec == nullptr) return std::nullopt;
  const std::string_view stated = checkpoint.parameter_of(module);
  if (!stated.empty() && stated != name) return std::nullopt;
  return StoredTensor{std::string(name), codec->shape(checkpoint, module), codec, std::string(module)};
}

}  // namespace

std::vector<StoredTensor> list_tensors(const Checkpoint& checkpoint) {
  std::vector<StoredTensor> listed;
  for (const auto& [name, dtype] : checkpoint.unsupported()) {
    const std::optional<ModuleKey> found = find_key(checkpoint, name);
    if (found && found->part->kind != PartSpec::Kind::derived) checkpoint.find(name);  // throws
  }
  for (const auto& [key, tensor] : checkpoint.tensors()) {
    if (const std::optional<ModuleKey> found = find_key(checkpoint, key)) {
      if (found->part != &found->codec->parts.front()) continue;
      const std::string name = parameter_name(checkpoint, found->module);
      const TensorView* exact = checkpoint.find(name);
      if (exact != nullptr && exact->size() > 0) continue;
      listed.push_back(
          {name, found->codec->shape(checkpoint, found->module), found->codec, std::string(found->module)});
    } else if (!is_stub(checkpoint, key, tensor)) {
      listed.push_back({.name = key, .shape = tensor.shape});
    }
  }
  std::ranges::sort(listed, [](const StoredTensor& a, const StoredTensor& b) {
    return strverscmp(a.name.c_str(), b.name.c_str()) < 0;
  });
  return listed;
}

std::optional<StoredTensor> find_tensor(const Checkpoint& checkpoint, std::string_view name) {
  const TensorView* exact = checkpoint.find(name);
  if (exact != nullptr && !is_stub(checkpoint, name, *exact))
    return StoredTensor{.name = std::string(name), .shape = exact->shape};
  if (const std::string_view module = module_of(name); module != name) {
    if (auto found = find_module(checkpoint, module, name)) return found;
  }
  return find_module(checkpoint, name, name);
}

}  // namespace hxq
