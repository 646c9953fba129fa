#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

/// Which bytes, bits and scales of a grouped matrix (docs/format.md, "Grouped levels") a thread of its kernels takes.
namespace hxq::cuda {

/// Index number `i` of 8 adjacent ones, which are `bits` bytes.
HXQ_HOST_DEVICE inline uint32_t grouped_index(uint64_t bytes, int bits, int i) {
  return static_cast<uint32_t>(bytes >> (i * bits)) & ((1u << bits) - 1);
}

/// What a warp of the GEMV multiplies at once: 16 rows of 128 columns, in chunks of 32. Of a chunk a lane has 8 columns
/// of two rows, which are kBits bytes each.
template <int kBits>
struct GroupedTile {
  static constexpr int kRows = 16, kCols = 128, kChunkCols = 32, kLaneCols = 8;
  static constexpr int kChunks = kCols / kChunkCols;
  static constexpr int kRowBytes = kCols * kBits / 8;
  /// Bytes from row to row where a tile lies in shared memory: those that lanes read together are in few banks twice.
  static constexpr int kPitch = kRowBytes + (kBits == 8 ? 32 : kBits == 4 || kBits == 6 ? 16 : 0);
  static constexpr int kBytes = kRows * kPitch + 16;  ///< with what is read and not used behind the last row

  /// A row is copied by adjacent lanes, 16 bytes each, of which the first kBits have something to do; a lane has every
  /// kCopyRows-th row from `copy_row` on.
  static constexpr int kRowLanes = kBits <= 4 ? 4 : 8, kCopyRows = 32 / kRowLanes, kCopies = kRows / kCopyRows;
  HXQ_HOST_DEVICE static int copy_row(int lane) { return lane / kRowLanes; }
  HXQ_HOST_DEVICE static int copy_byte(int lane) { return lane % kRowLanes * 16; }

  /// The lane's row of a tile; it has the one 8 rows later as well.
  HXQ_HOST_DEVICE static int lane_row(int lane) { return lane / 4; }
  /// Its 8 columns of a chunk begin there.
  HXQ_HOST_DEVICE static int lane_col(int lane) { return lane % 4 * kLaneCols; }
  /// Their bytes begin `lane_shift` bits behind a word, of which kWords are read.
  static constexpr int kWords = kBits == 4 ? 1 : kBits == 7 ? 3 : 2;
  HXQ_HOST_DEVICE static int lane_byte(int chunk, int lane) { return chunk * 4 * kBits + lane % 4 * kBits / 4 * 4; }
  HXQ_HOST_DEVICE static int lane_shift(int lane) { return lane % 4 * kBits % 4 * 8; }

  /// Lookups take fields: of up to 4 bits two adjacent indices at once. A table has each entry 32 times.
  static constexpr int kFieldCols = kBits <= 4 ? 2 : 1;
  static constexpr int kFieldBits = kBits * kFieldCols;
  static constexpr int kEntries = 1 << kFieldBits;
  static constexpr uint32_t kEntryBytes = 128, kTableBytes = kEntries * kEntryBytes;
  /// Where the entry of field `i` of the lane's 8 columns begins.
  HXQ_HOST_DEVICE static uint32_t entry_offset(uint32_t low, uint32_t high, int i) {
    constexpr uint32_t kMask = (kEntries - 1) * kEntryBytes;
    const int shift = i * kFieldBits - 7;
    if (shift <= 0) return low << -shift & kMask;
    if (shift + 7 + kFieldBits <= 32) return low >> shift & kMask;
    if (shift >= 32) return high >> (shift - 32) & kMask;
    return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> shift) & kMask;
  }
  /// The index of column `which` of a field, by its entry's number.
  HXQ_HOST_DEVICE static int index_of(int entry, int which) { return entry >> (which * kBits) & ((1 << kBits) - 1); }
};

/// The tiles of a block's rows, along the rows one after the other, shared among its warps.
struct GroupedShare {
  static constexpr int kWarps = 16;

  int steps = 1;  ///< tiles along a row
  int tiles = 0;  ///< all of them

  HXQ_HOST_DEVICE GroupedShare(int rows, int cols) : steps(cols / 128), tiles(ceil_div(rows, 16) * steps) {}
  HXQ_HOST_DEVICE int begin(int warp) const { return static_cast<int>(int64_t{tiles} * warp / kWarps); }
  /// Sums of a warp over 16 rows have a place of their own: along the tiles, the warp or the rows or both grow.
  HXQ_HOST_DEVICE static int place(int row_tile, int warp) { return row_tile + warp; }
  HXQ_HOST_DEVICE static int places(int rows) { return ceil_div(rows, 16) + kWarps - 1; }
};

/// The scales of a tile's row lie in one word, of which a chunk has one byte. Groups are of 32 << group_shift columns.
HXQ_HOST_DEVICE inline int scale_word_of(int step, int group_shift) { return (step * 4 >> group_shift) / 4; }
HXQ_HOST_DEVICE inline int scale_byte_of(int step, int chunk, int group_shift) {
  return (step * 4 + chunk) >> group_shift & 3;
}

}  // namespace hxq::cuda
