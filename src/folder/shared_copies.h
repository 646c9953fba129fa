#pragma once

#include "desc/model_desc.h"
#include "io/checkpoint.h"

namespace hxq {

/// Tensors that blocks share may be stored once more per block. Throws `Error` unless such copies are the same, byte
/// for byte: the checkpoint's blocks are then not shared, and running it as if they were would give another model.
void check_shared_copies(const Checkpoint& checkpoint, const ModelDesc& model);

}  // namespace hxq
