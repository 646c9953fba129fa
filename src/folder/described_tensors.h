#pragma once

#include <optional>
#include <string>
#include <vector>

#include "codec/stored_tensors.h"
#include "desc/model_desc.h"
#include "io/checkpoint.h"

namespace hxq {

/// The described tensor as it is stored; empty when it is optional and not there. Throws `Error` if it is missing, only
/// a part of its compressed form is there, or it is stored exactly with another shape. (Reading a compressed one checks
/// its shape.)
std::optional<StoredTensor> find_described(const Checkpoint& checkpoint, const WeightDesc& desc);

/// Stored tensors that the model would have if it had more layers, by layer.
std::vector<std::string> tensors_of_more_layers(const Checkpoint& checkpoint, const ModelDesc& model);

/// Throws `Error` if there are any: what ran would be the first layers of a model.
void check_layer_count(const Checkpoint& checkpoint, const ModelDesc& model);

}  // namespace hxq
