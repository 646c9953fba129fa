#pragma once

#include <map>
#include <string>

#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// Shapes by tensor name where config.json names an architecture that is known; otherwise empty. Flat 12-bit indices
/// need them: their own shape does not tell rows from columns.
std::map<std::string, Shape> known_shapes(const Checkpoint& checkpoint);

}  // namespace hxq
