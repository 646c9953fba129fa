#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

/// Where an element of x lies once it is packed for the tensor cores.
///
/// A lane reads 16 adjacent weights of a row as they are stored: lane t of four has columns 16 t to 16 t + 15 of 64. A
/// product of depth 16 wants of lane t its columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; product j gets bytes 4 j to
/// 4 j + 3. The columns of x are permuted to match, and the weights stay as they are.
namespace hxq::cuda {

inline constexpr int kChunkCols = 64;  ///< columns that are packed together

/// Column `col` of a chunk is multiplied at this place of it.
HXQ_HOST_DEVICE inline int packed_place(int col) {
  const int lane = col / 16;
  const int product = col % 16 / 4;
  const int byte = col % 4;
  return 16 * product + 2 * lane + (byte < 2 ? byte : 8 + byte - 2);
}

/// The column that is multiplied at `place`.
HXQ_HOST_DEVICE inline int packed_col(int place) {
  const int lane = place % 8 / 2;
  const int product = place / 16;
  const int byte = place % 16 / 8 * 2 + place % 2;
  return 16 * lane + 4 * product + byte;
}

/// Halves from the start of a chunk to `place` of token `token`: rows of 128 bytes, whose 16-byte pieces are permuted
/// so that eight rows of a column fall into different banks.
HXQ_HOST_DEVICE inline int packed_offset(int token, int place) {
  return token * kChunkCols + ((place / 8) ^ (token % 8)) * 8 + place % 8;
}

}  // namespace hxq::cuda
