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
  static constexpr int kWarps = 16;  ///< of a block
  static constexpr int kUnitCols = 16;
  static constexpr int kMaxUnits = 4;  ///< of a lane

  int units = 1;   ///< 1, 2 or 4
  int lanes = 32;  ///< 32, or 16, 8, 4 where warps is 1
  int warps = 1;   ///< 1, 2, 4, 8 or 16
  int64_t blocks = 1;

  HXQ_HOST_DEVICE int row_slots() const { return kWarps / warps * (32 / lanes); }
  /// Rows of a thread whose sums over lanes are taken together.
  HXQ_HOST_DEVICE static constexpr int rows_at_once(int units) { return 4 / units; }

  HXQ_HOST_DEVICE int slot_of(int thread) const { return thread / 32 / warps * (32 / lanes) + thread % 32 / lanes; }
  /// The i-th unit of a thread; past the end of the row for threads that have nothing to do.
  HXQ_HOST_DEVICE int unit_of(int thread, int i) const {
    return (i * warps + thread / 32 % warps) * lanes + thread % lanes;
  }
  HXQ_HOST_DEVICE int64_t row_begin(int64_t rows, int64_t block) const { return rows * block / blocks; }
  /// No block has more rows.
  HXQ_HOST_DEVICE int max_block_rows(int64_t rows) const { return static_cast<int>((rows + blocks - 1) / blocks); }
};

/// Columns that a plan can cover.
inline constexpr int64_t kGemvMaxCols = int64_t{GemvPlan::kMaxUnits} * 32 * GemvPlan::kWarps * GemvPlan::kUnitCols;

/// The plan whose threads take the fewest steps; `cols` is at most kGemvMaxCols. `blocks`: one for each multiprocessor.
/// A lane has one unit wherever 16 warps cover a row so: then a multiprocessor has room for the next kernel's block.
inline GemvPlan plan_gemv(int64_t rows, int64_t cols, int64_t blocks) {
  const int64_t row_units = (cols + GemvPlan::kUnitCols - 1) / GemvPlan::kUnitCols;
  GemvPlan best;
  while (best.units * 32 * GemvPlan::kWarps < row_units) best.units *= 2;
  best.blocks = rows < blocks ? rows : blocks;
  int64_t best_steps = -1;
  const auto consider = [&](int lanes, int warps) {
    if (int64_t{best.units} * lanes * warps < row_units) return;
    GemvPlan plan = best;
    plan.lanes = lanes;
    plan.warps = warps;
    const int step = plan.row_slots() * GemvPlan::rows_at_once(plan.units);
    const int64_t steps = (plan.max_block_rows(rows) + step - 1) / step;
    if (best_steps >= 0 && steps >= best_steps) return;
    best = plan;
    best_steps = steps;
  };
  for (int lanes = 4; lanes < 32; lanes *= 2) consider(lanes, 1);
  for (int warps = 1; warps <= GemvPlan::kWarps; warps *= 2) consider(32, warps);
  return best;
}

}  // namespace hxq::cuda
