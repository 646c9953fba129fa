#pragma once

#include <map>
#include <optional>
#include <string>

#include "desc/model_desc.h"
#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// The model's description where config.json names an architecture that the runtime knows; otherwise empty.
std::optional<ModelDesc> known_model(const Checkpoint& checkpoint);

/// Shapes by tensor name of such a model; otherwise empty. Flat 12-bit indices need them: their own shape does not tell
/// rows from columns.
std::map<std::string, Shape> known_shapes(const Checkpoint& checkpoint);

/// Throws `Error` for a tensor of a dtype that the project does not read, unless the architecture is known and does not
/// name it (`shapes` is `known_shapes`).
void check_dtypes(const Checkpoint& checkpoint, const std::map<std::string, Shape>& shapes);

}  // namespace hxq
