#include "codec/stored_tensors.h"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <span>

#include "codec/codebook_read.h"

namespace hxq {
namespace {

constexpr std::string_view kWeight = ".weight";

/// The name a compressed module's matrix has in the model.
std::string parameter_name(const Checkpoint& checkpoint, std::string_view module) {
  if (const std::string_view stated = checkpoint.parameter_of(module); !stated.empty()) return std::string(stated);
  if (checkpoint.tensors().contains(module)) return std::string(module);
  return fmt::format("{}{}", module, kWeight);
}

/// Whether the key is one of `parts` of a compressed module.
bool is_part_of_module(const Checkpoint& checkpoint, std::string_view key,
                       std::span<const std::string_view> parts = kModuleParts) {
  const size_t dot = key.rfind('.');
  return dot != key.npos && std::ranges::find(parts, key.substr(dot + 1)) != parts.end() &&
         is_compressed(checkpoint, key.substr(0, dot));
}

/// An empty tensor that stands where the matrix of a compressed module would be.
bool is_stub(const Checkpoint& checkpoint, std::string_view key, const TensorView& tensor) {
  if (tensor.size() != 0) return false;
  return is_compressed(checkpoint, key) ||
         (key.ends_with(kWeight) && is_compressed(checkpoint, key.substr(0, key.size() - kWeight.size())));
}

std::optional<StoredTensor> find_module(const Checkpoint& checkpoint, std::string_view module, std::string_view name) {
  if (!is_compressed(checkpoint, module)) return std::nullopt;
  const std::string_view stated = checkpoint.parameter_of(module);
  if (!stated.empty() && stated != name) return std::nullopt;
  return StoredTensor{std::string(name), codebook_matrix_shape(checkpoint, module), true, std::string(module)};
}

}  // namespace

std::vector<StoredTensor> list_tensors(const Checkpoint& checkpoint) {
  std::vector<StoredTensor> listed;
  for (const auto& [name, dtype] : checkpoint.unsupported()) {
    if (is_part_of_module(checkpoint, name, std::span(kModuleParts).first(kNeededParts)))
      checkpoint.find(name);  // throws
  }
  for (const auto& [key, tensor] : checkpoint.tensors()) {
    if (is_part_of_module(checkpoint, key)) {
      if (!key.ends_with(".codebook")) continue;
      const std::string_view module = std::string_view(key).substr(0, key.rfind('.'));
      const std::string name = parameter_name(checkpoint, module);
      const TensorView* exact = checkpoint.find(name);
      if (exact != nullptr && exact->size() > 0) continue;
      listed.push_back({name, codebook_matrix_shape(checkpoint, module), true, std::string(module)});
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
  if (name.ends_with(kWeight)) {
    if (auto found = find_module(checkpoint, name.substr(0, name.size() - kWeight.size()), name)) return found;
  }
  return find_module(checkpoint, name, name);
}

}  // namespace hxq
