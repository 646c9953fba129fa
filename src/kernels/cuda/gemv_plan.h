#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/host_device.h"

/// How the codebook GEMV spreads a matrix over blocks, warps and lanes.
///
/// A row is cut into units of 16 columns, the bytes of one load. `groups` groups of `lanes` adjacent lanes share a row,
/// and each lane has `units` of them, groups * lanes apart: always the same columns, so that its part of x stays in
/// registers. A block owns adjacent rows, and its threads work on row_slots() of them side by side; the last threads
/// have nothing to do where groups do not divide the block.
namespace hxq::cuda {

struct GemvPlan {
  static constexpr int kWarps = 16;  ///< of a block
  static constexpr int kUnitCols = 16;
  static constexpr int kMaxUnits = 4;  ///< of a lane

  int units = 1;       ///< 1, 2 or 4
  int lanes_log2 = 5;  ///< 2 to 5
  int groups = 1;
  int slots = kWarps;                ///< row_slots()
  int reciprocal = kReciprocal + 1;  ///< of `groups`
  int64_t blocks = 1;

  static constexpr int kThreads = kWarps * 32;
  static constexpr int kMaxGroups = 32;
  static constexpr int kReciprocal = 1 << 16;

  void set_groups(int log2_of_lanes, int count) {
    lanes_log2 = log2_of_lanes;
    groups = count;
    slots = (kThreads >> lanes_log2) / groups;
    reciprocal = kReciprocal / groups + 1;
  }

  HXQ_HOST_DEVICE int lanes() const { return 1 << lanes_log2; }
  HXQ_HOST_DEVICE int row_slots() const { return slots; }
  /// Rows of a thread whose sums over lanes are taken together.
  HXQ_HOST_DEVICE static constexpr int rows_at_once(int units) { return 4 / units; }
  /// Rows that the threads of a block multiply in one go.
  HXQ_HOST_DEVICE int turn_rows() const { return row_slots() * rows_at_once(units); }

  /// Which of the rows that are worked on side by side; row_slots() or more: none.
  HXQ_HOST_DEVICE int slot_of(int thread) const {
    return (thread >> lanes_log2) * reciprocal / kReciprocal;  // a division by `groups`, exact for so few threads
  }
  /// The group's number among those that share a row.
  HXQ_HOST_DEVICE int group_of(int thread) const { return (thread >> lanes_log2) - slot_of(thread) * groups; }
  /// The i-th unit of a thread; past the end of the row for threads that have nothing to do.
  HXQ_HOST_DEVICE int unit_of(int thread, int i) const {
    return ((i * groups + group_of(thread)) << lanes_log2) + (thread & (lanes() - 1));
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
/// `whole_warps`: no thread is without work, and rows that groups share are shared by whole warps.
inline GemvPlan plan_gemv(int64_t rows, int64_t cols, int64_t blocks, bool whole_warps = false) {
  const int64_t row_units = (cols + GemvPlan::kUnitCols - 1) / GemvPlan::kUnitCols;
  GemvPlan best;
  while (best.units * GemvPlan::kThreads < row_units) best.units *= 2;
  best.blocks = rows < blocks ? rows : blocks;
  int64_t best_steps = -1;
  for (int lanes_log2 = 2; lanes_log2 <= 5; ++lanes_log2) {
    int64_t groups = ceil_div(row_units, int64_t{best.units} << lanes_log2);
    while (whole_warps && (groups & (groups - 1)) != 0) ++groups;
    if (groups > GemvPlan::kMaxGroups || groups << lanes_log2 > GemvPlan::kThreads) continue;
    if (whole_warps && lanes_log2 < 5 && groups > 1) continue;
    GemvPlan plan = best;
    plan.set_groups(lanes_log2, static_cast<int>(groups));
    const int64_t steps = ceil_div(plan.max_block_rows(rows), plan.turn_rows());
    // Of those that take as long, that with the fewest sums to add up.
    if (best_steps >= 0 && (steps > best_steps || (steps == best_steps && plan.groups >= best.groups))) continue;
    best = plan;
    best_steps = steps;
  }
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
