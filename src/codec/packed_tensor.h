#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "hxq/tensor.h"

namespace hxq {

/// One stored tensor of a compressed module, little-endian and row-major as in the file.
struct Plane {
  std::string suffix = {};  ///< what follows "<module>." in the tensor's name: "codebook", "indices", ...
  DType dtype = DType::u8;
  Shape shape = {};
  std::vector<std::byte> bytes = {};
};

/// A compressed matrix as the tensors that are written for it.
struct PackedTensor {
  std::vector<Plane> planes = {};
};

}  // namespace hxq
