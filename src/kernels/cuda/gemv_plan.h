#pragma once

#include <cstdint>
#include <span>

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

  int units = 1;       ///< 1, 2 or 4
  int lanes_log2 = 5;  ///< 5, or 4, 3, 2 where warps() is 1
  int warps_log2 = 0;  ///< up to 4
  int64_t blocks = 1;

  HXQ_HOST_DEVICE int lanes() const { return 1 << lanes_log2; }
  HXQ_HOST_DEVICE int warps() const { return 1 << warps_log2; }
  HXQ_HOST_DEVICE int row_slots() const { return kWarps >> warps_log2 << (5 - lanes_log2); }
  /// Rows of a thread whose sums over lanes are taken together.
  HXQ_HOST_DEVICE static constexpr int rows_at_once(int units) { return 4 / units; }
  /// Rows that the threads of a block multiply in one go.
  HXQ_HOST_DEVICE int turn_rows() const { return row_slots() * rows_at_once(units); }

  HXQ_HOST_DEVICE int slot_of(int thread) const {
    return (thread / 32 >> warps_log2 << (5 - lanes_log2)) + (thread % 32 >> lanes_log2);
  }
  /// The warp's number among those that share a row.
  HXQ_HOST_DEVICE int warp_of(int thread) const { return thread / 32 & (warps() - 1); }
  /// The i-th unit of a thread; past the end of the row for threads that have nothing to do.
  HXQ_HOST_DEVICE int unit_of(int thread, int i) const {
    return (((i << warps_log2) + warp_of(thread)) << lanes_log2) + (thread & (lanes() - 1));
  }
  /// No block has more rows.
  HXQ_HOST_DEVICE int max_block_rows(int64_t rows) const { return static_cast<int>((rows + blocks - 1) / blocks); }
};

/// Adjacent rows for each of some blocks: the first `more` have one row more than the others.
struct BlockShare {
  int64_t rows = 0;
  int more = 0;

  BlockShare() = default;
  BlockShare(int64_t all_rows, int64_t blocks) : rows(all_rows / blocks), more(static_cast<int>(all_rows % blocks)) {}
  HXQ_HOST_DEVICE int64_t begin(int block) const { return block * rows + (block < more ? block : more); }
  HXQ_HOST_DEVICE int count(int block) const { return static_cast<int>(rows) + (block < more ? 1 : 0); }
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
  const auto consider = [&](int lanes_log2, int warps_log2) {
    GemvPlan plan = best;
    plan.lanes_log2 = lanes_log2;
    plan.warps_log2 = warps_log2;
    if (int64_t{plan.units} * plan.lanes() * plan.warps() < row_units) return;
    const int64_t steps = ceil_div(plan.max_block_rows(rows), plan.turn_rows());
    if (best_steps >= 0 && steps >= best_steps) return;
    best = plan;
    best_steps = steps;
  };
  for (int lanes_log2 = 2; lanes_log2 < 5; ++lanes_log2) consider(lanes_log2, 0);
  for (int warps_log2 = 0; 1 << warps_log2 <= GemvPlan::kWarps; ++warps_log2) consider(5, warps_log2);
  return best;
}

/// Gives `blocks` blocks to matrices that share a kernel, at least one and at most its rows to each, so that the most
/// rows of a block are few. share: [rows.size()]; with fewer blocks than matrices there are as many as those.
inline void share_blocks(std::span<const int64_t> rows, int64_t blocks, int64_t* share) {
  const auto count = static_cast<int64_t>(rows.size());
  for (int64_t i = 0; i < count; ++i) share[i] = 1;
  for (int64_t given = count; given < blocks; ++given) {
    int64_t most = 0;
    for (int64_t i = 1; i < count; ++i) {
      if (rows[static_cast<size_t>(i)] * share[most] > rows[static_cast<size_t>(most)] * share[i]) most = i;
    }
    if (share[most] == rows[static_cast<size_t>(most)]) return;
    ++share[most];
  }
}

}  // namespace hxq::cuda
