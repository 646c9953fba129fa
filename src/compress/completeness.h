#pragma once

#include <vector>

#include "folder/model_folder.h"
#include "hxq/error.h"

namespace hxq {

/// What keeps the stored tensors from being the model that config.json describes. Where the runtime knows the
/// architecture: tensors that are missing (not from `.cdnav3` trees) or have another shape, and layers more than the
/// configuration has. Otherwise: modules that `quantization_config` lists as compressed and of which only a part is
/// stored.
std::vector<Error> completeness_faults(const ModelFolder& folder);

}  // namespace hxq
