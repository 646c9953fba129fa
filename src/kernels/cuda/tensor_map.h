#pragma once

#include <cuda.h>

#include <cstdint>

namespace hxq::cuda {

/// A row-major binary16 matrix of which the copy engine brings boxes of 64 columns, placed as `hopper::operand_of`
/// wants. Aligned to 16 bytes, and so are its rows.
struct MappedMatrix {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;     ///< elements from row to row
  uint32_t box_rows = 0;  ///< at most 256
};

/// False where the driver offers no such maps or refuses this one. What lies outside of the matrix is read as zeros.
bool make_tensor_map(const MappedMatrix& matrix, CUtensorMap* map) noexcept;

}  // namespace hxq::cuda
