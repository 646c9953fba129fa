#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// What follows "m." in the keys of a compressed module m, which are not tensors of the model: kNeededParts that
/// decoding reads, then buffers derived from them.
inline constexpr size_t kNeededParts = 9;
inline constexpr std::array<std::string_view, 14> kModuleParts = {
    "codebook",      "indices",        "sidecar_positions", "sidecar_indices", "sidecar_values",   "svd_U",
    "svd_s",         "svd_Vt",         "channel_scales",    "codebook_f16",    "_sidecar_vq_vals", "_sidecar_rows",
    "_sidecar_cols", "_sidecar_deltas"};

/// One tensor of the model, however it is stored.
struct StoredTensor {
  std::string name = {};    ///< the parameter's name, "….in_proj.weight"
  Shape shape = {};         ///< the tensor's; flat when compressed with packed indices that do not tell rows from cols
  bool compressed = false;  ///< stored as codebook and indices
  std::string module = {};  ///< when compressed: the prefix of its stored keys; for `read_codebook_matrix`
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
