#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "codec/codec.h"
#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// What the name of a module's weight has after the module's own.
inline constexpr std::string_view kWeightSuffix = ".weight";

/// The module that a parameter is stored under in compressed form: its name without ".weight".
inline std::string_view module_of(std::string_view parameter) noexcept {
  if (parameter.ends_with(kWeightSuffix)) parameter.remove_suffix(kWeightSuffix.size());
  return parameter;
}

/// One tensor of the model, however it is stored.
struct StoredTensor {
  std::string name = {};         ///< the parameter's name, "….in_proj.weight"
  Shape shape = {};              ///< the tensor's; flat where a codec's parts do not tell rows from columns
  const Codec* codec = nullptr;  ///< null: stored exactly
  std::string module = {};       ///< when compressed: the prefix of its stored keys
};

/// The model's tensors by name, ascending, numbers within names by value (layer 2 before layer 10). What is stored both
/// exactly and compressed is listed once, as exact. Parts of compressed modules, derived buffers, empty stubs of
/// compressed weights and tensors of a dtype that the project does not read are left out; a part that is needed of such
/// a dtype is an `Error`.
///
/// A compressed module m stands for the parameter m.weight, unless the checkpoint names it otherwise.
std::vector<StoredTensor> list_tensors(const Checkpoint& checkpoint);

/// The tensor with that name: stored exactly, or compressed as the module of that name without ".weight", or compressed
/// under the name itself (2-D parameters that are not called weight). Empty when there is none.
std::optional<StoredTensor> find_tensor(const Checkpoint& checkpoint, std::string_view name);

}  // namespace hxq
