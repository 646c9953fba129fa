#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

/// How the codebook GEMV spreads a matrix over blocks, warps and lanes.
///
/// A row is cut into units of 16 columns, the bytes of one load. `warps` warps of `lanes` lanes share a row, and each
/// lane has `units` of them, warps * lanes apart: always the same columns, so that its part of x stays in registers. A
/// block owns adjacent rows, and its threads work on row_slots() of them side by side.
namespace hxq::cuda {

struct GemvPlan {
  static constexpr int kMaxWarps = 16;  ///< of a block
  static constexpr int kUnitCols = 16;
  static constexpr int kMaxUnits = 4;  ///< of a lane

  int units = 1;        ///< 1 to kMaxUnits
  int lanes = 32;       ///< 32, or 16, 8, 4 where warps is 1
  int warps = 1;        ///< 1, 2, 4, 8 or 16
  int block_warps = 8;  ///< 8, or 16
  int64_t blocks = 1;

  HXQ_HOST_DEVICE int row_slots() const { return block_warps / warps * (32 / lanes); }
  /// Rows whose bytes a thread has in flight at once: 128 bytes or a little less.
  HXQ_HOST_DEVICE static constexpr int rows_in_flight(int units) {
    return units == 1 ? 8 : units == 2 ? 4 : units == 3 ? 2 : 1;
  }

  HXQ_HOST_DEVICE int slot_of(int thread) const { return thread / 32 / warps * (32 / lanes) + thread % 32 / lanes; }
  /// Of the row slots of the thread's warp, how many come before its own.
  HXQ_HOST_DEVICE int slot_in_warp(int thread) const { return thread % 32 / lanes; }
  /// The i-th unit of a thread; past the end of the row for threads that have nothing to do.
  HXQ_HOST_DEVICE int unit_of(int thread, int i) const {
    return (i * warps + thread / 32 % warps) * lanes + thread % lanes;
  }
  HXQ_HOST_DEVICE int64_t row_begin(int64_t rows, int64_t block) const { return rows * block / blocks; }
  /// No block has more rows.
  HXQ_HOST_DEVICE int max_block_rows(int64_t rows) const { return static_cast<int>((rows + blocks - 1) / blocks); }
};

/// Columns that a plan can cover.
inline constexpr int64_t kGemvMaxCols = int64_t{GemvPlan::kMaxUnits} * 32 * GemvPlan::kMaxWarps * GemvPlan::kUnitCols;

/// The plan that gives a thread the fewest units to look up; of equal ones that with the fewest loads a row, which
/// keeps most rows in flight. `cols` is at most kGemvMaxCols; `blocks`: one for each multiprocessor. Blocks of matrices
/// so small that they are in flight at once have 8 warps, which leave room for the next kernel's blocks beside them.
inline GemvPlan plan_gemv(int64_t rows, int64_t cols, int64_t blocks) {
  constexpr int64_t kSmallBlockBytes = 32768;
  const int64_t row_units = (cols + GemvPlan::kUnitCols - 1) / GemvPlan::kUnitCols;
  const bool small = rows * cols <= blocks * kSmallBlockBytes && row_units <= 8 * 32 * GemvPlan::kMaxUnits;
  const int block_warps = small ? 8 : 16;
  GemvPlan best;
  int64_t best_cost = -1;
  const auto consider = [&](int units, int lanes, int warps) {
    if (static_cast<int64_t>(units) * lanes * warps < row_units) return;
    const GemvPlan plan{.units = units,
                        .lanes = lanes,
                        .warps = warps,
                        .block_warps = block_warps,
                        .blocks = rows < blocks ? rows : blocks};
    const int slots = plan.row_slots();
    const int64_t cost = int64_t{(plan.max_block_rows(rows) + slots - 1) / slots} * units;
    if (best_cost < 0 || cost < best_cost) {
      best = plan;
      best_cost = cost;
    }
  };
  for (int units = 1; units <= GemvPlan::kMaxUnits; ++units) {
    for (int lanes = 4; lanes < 32; lanes *= 2) consider(units, lanes, 1);
    for (int warps = 1; warps <= block_warps; warps *= 2) consider(units, 32, warps);
  }
  return best;
}

}  // namespace hxq::cuda
