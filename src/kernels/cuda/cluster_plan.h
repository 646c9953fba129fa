#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace hxq::cuda {

/// What the plans of products have in common whose clusters own adjacent rows, and each of whose blocks has `units`
/// units of 64 of their columns. Groups of warps take tiles of 16 rows; the warps of a group share the units. Of a tile
/// and a unit, lane l has 16 adjacent columns of rows l / 4 and l / 4 + 8. After a pass of rounds of tiles each block
/// of a cluster finishes `own_rows` of the pass.
struct ClusterPlan {
  static constexpr int kWarps = 16;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTileRows = 16;
  static constexpr int kUnitCols = 64;
  static constexpr int kTokens = 8;  ///< of a token tile
  static constexpr int kReciprocalBits = 20;

  int units = 1;  ///< of a block
  int col_groups_log2 = 0;
  int pass_rounds = 1;
  int own_rows = 1;
  int own_reciprocal = 1;
  int64_t clusters = 0;

  HXQ_HOST_DEVICE int col_groups() const { return 1 << col_groups_log2; }
  HXQ_HOST_DEVICE int row_group_of(int warp) const { return warp >> col_groups_log2; }
  /// The warp's first unit of the block's; its others are col_groups() apart.
  HXQ_HOST_DEVICE int col_group_of(int warp) const { return warp & (col_groups() - 1); }
  HXQ_HOST_DEVICE static int lane_row(int lane) { return lane / 4; }  ///< and 8 rows further
  HXQ_HOST_DEVICE static int lane_col(int lane) { return lane % 4 * 16; }
  /// Which block of the cluster finishes a row of a pass.
  HXQ_HOST_DEVICE int owner_of(int row) const { return row * own_reciprocal >> kReciprocalBits; }

  void set_own_rows(int rows) {
    own_rows = rows;
    own_reciprocal = (1 << kReciprocalBits) / rows + 1;
  }
};

}  // namespace hxq::cuda
