#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/cluster_plan.h"

/// How the GEMV of up to 8 tokens spreads a matrix over clusters of blocks, warps and lanes.
///
/// Beside what a `ClusterPlan` says: the warps of a group always have the same units, so that their part of x stays in
/// registers. After each round of tiles, one for each group, a block adds up the sums of its warps, after a pass of
/// rounds the cluster those of its blocks.
namespace hxq::cuda {

struct BatchGemvPlan : ClusterPlan {
  static constexpr int kTileSums = kTileRows * kTokens;
  static constexpr int kPassRows = 288;   ///< at most
  static constexpr int kMostCluster = 8;  ///< sizes are powers of two
  static_assert(kTileRows % kMostCluster == 0);
  static constexpr int kFewestColGroupsLog2 = 2;
  static_assert((kWarps >> kFewestColGroupsLog2) * kTileSums <= kThreads);  // a thread for each sum of a round

  int cluster_log2 = 0;

  HXQ_HOST_DEVICE int cluster() const { return 1 << cluster_log2; }
  HXQ_HOST_DEVICE int row_groups() const { return kWarps >> col_groups_log2; }
  HXQ_HOST_DEVICE int round_rows() const { return row_groups() * kTileRows; }
  HXQ_HOST_DEVICE int pass_rows() const { return pass_rounds * round_rows(); }
  /// Units that a warp has registers for. `parts`: numbers for an element of x.
  HXQ_HOST_DEVICE static constexpr int warp_units(int parts) { return 3 - parts; }

  void set_pass(int64_t cluster_rows) {
    pass_rounds = static_cast<int>(
        std::clamp<int64_t>(ceil_div<int64_t>(cluster_rows, round_rows()), 1, kPassRows / round_rows()));
    set_own_rows(pass_rows() / cluster());  // tiles have a multiple of the largest cluster's blocks
  }
};

/// Whether n blocks can share rows of so many columns, and as many clusters as that run at all: `clusters[n]` run at
/// once; [1]: the multiprocessors.
inline bool fits_batch_gemv(int64_t cols, int parts, int n, const int* clusters) {
  return clusters[n] > 0 &&
         cols <= int64_t{n} * BatchGemvPlan::kWarps * BatchGemvPlan::warp_units(parts) * BatchGemvPlan::kUnitCols;
}

/// Whether there is a plan.
inline bool fits_batch_gemv(int64_t cols, int parts, const int* clusters) {
  for (int n = 1; n <= BatchGemvPlan::kMostCluster; n *= 2) {
    if (fits_batch_gemv(cols, parts, n, clusters)) return true;
  }
  return false;
}

/// The plan that takes the fewest clocks by estimate; no clusters: there is none. All at least 1.
inline BatchGemvPlan plan_batch_gemv(int64_t rows, int64_t cols, int parts, const int* clusters) {
  BatchGemvPlan best;
  int64_t best_cost = -1;
  for (int cluster_log2 = 0; 1 << cluster_log2 <= BatchGemvPlan::kMostCluster; ++cluster_log2) {
    const int cluster = 1 << cluster_log2;
    if (!fits_batch_gemv(cols, parts, cluster, clusters)) continue;
    BatchGemvPlan plan;
    plan.cluster_log2 = cluster_log2;
    plan.units = static_cast<int>(ceil_div<int64_t>(cols, int64_t{cluster} * BatchGemvPlan::kUnitCols));
    plan.clusters = std::min<int64_t>(clusters[cluster], ceil_div<int64_t>(rows, BatchGemvPlan::kTileRows));
    const int64_t cluster_rows = ceil_div(rows, plan.clusters);
    for (int log2 = BatchGemvPlan::kFewestColGroupsLog2; 1 << log2 <= BatchGemvPlan::kWarps; ++log2) {
      plan.col_groups_log2 = log2;
      const int warp_units = ceil_div(plan.units, plan.col_groups());
      if (warp_units > BatchGemvPlan::warp_units(parts)) continue;
      plan.set_pass(cluster_rows);
      // Clocks: of lookups and bytes in shared memory, of all weights on their way, of the ends of rounds and passes.
      const int64_t rounds = ceil_div<int64_t>(cluster_rows, plan.round_rows());
      const int64_t shared = rounds * warp_units * BatchGemvPlan::kWarps * 52;
      const int64_t memory = rows * cols / 1800;
      const int64_t ends = rounds * 100 + ceil_div<int64_t>(rounds, plan.pass_rounds) * (cluster > 1 ? 1500 : 500);
      const int64_t cost = std::max(shared, memory) + ends;
      if (best_cost >= 0 && cost >= best_cost) continue;
      best = plan;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace hxq::cuda
