#pragma once

#include "kernels/cuda/host_device.h"

/// Which elements of their operands the lanes of a warp hold when tensor cores multiply binary16 (tensor_core.cuh).
namespace hxq::cuda {

/// Elements of a row of halves in shared memory: an odd number of 16-byte pieces, so that a column of pieces of eight
/// adjacent rows is in different banks.
constexpr int spread_row(int cols) { return cols + 8; }

/// Where a lane begins in a 16 x 16 block of halves when a warp loads it for m16n8k16, left operands as they are and
/// right operands (a row for each of the 16 that are summed over) transposed: registers 0 to 3 are a left operand, 0
/// and 1 a right one for the first 8 columns, 2 and 3 for the others.
struct BlockPlace {
  int row, col;

  HXQ_HOST_DEVICE constexpr explicit BlockPlace(int lane) : row(lane % 16), col(lane / 16 * 8) {}
};

/// The same for a left operand that lies transposed, loaded transposed, and for a right operand that lies transposed (a
/// row for each of its columns), loaded as it is.
struct TransposedPlace {
  int row, col;

  HXQ_HOST_DEVICE constexpr explicit TransposedPlace(int lane) : row(lane / 16 * 8 + lane % 8), col(lane / 8 % 2 * 8) {}
};

/// The row (0 or 8 more) and the first of two columns of the results of m16n8k16 that a lane gets; its registers 0 and
/// 1 are of the row, 2 and 3 of the one 8 further down.
struct ResultPlace {
  int row, col;

  HXQ_HOST_DEVICE constexpr explicit ResultPlace(int lane) : row(lane / 4), col(lane % 4 * 2) {}
};

/// The register of a left operand of 16 columns that holds two adjacent results of one of its blocks of 8 columns, in
/// the upper (0) or lower (1) eight rows.
HXQ_HOST_DEVICE constexpr int left_register(int block, int half) { return 2 * block + half; }

}  // namespace hxq::cuda
