#pragma once

#include <cuda.h>

#include <cstdint>

namespace hxq::cuda {

/// A row-major matrix of binary16 or of bytes of which the copy engine brings boxes of 64 columns: binary16 placed as
/// `hopper::operand_of` wants, bytes row after row, or boxes of 128 columns of bytes, whose 16-byte pieces are placed
/// as those of binary16. Aligned to 16 bytes, and so are its rows.
struct MappedMatrix {
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;     ///< elements from row to row
  bool bytes = false;     ///< else binary16
  bool wide = false;      ///< boxes of 128 columns; of bytes
  uint32_t box_rows = 0;  ///< at most 256
};

/// False where the driver offers no such maps or refuses this one. What lies outside of the matrix is read as zeros.
bool make_tensor_map(const MappedMatrix& matrix, CUtensorMap* map) noexcept;

}  // namespace hxq::cuda
