#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/cluster_plan.h"

/// How the product for few tokens spreads a matrix over clusters of blocks, warps and lanes.
///
/// Beside what a `ClusterPlan` says: a block holds x of its columns. `row_groups` groups of warps take tiles in turn;
/// the warps of a group take units in turn. After a round of tiles a block adds up the sums of its warps, after a pass
/// of rounds the cluster those of its blocks.
namespace hxq::cuda {

struct SkinnyPlan : ClusterPlan {
  static constexpr int kMostUnits = 32;            ///< of a block whose x is one number for 8 tokens
  static constexpr int kMostColGroups = 8;         ///< so that memory is read in pieces of 512 bytes
  static constexpr int kSumPitch = kTileRows + 4;  ///< lanes write the sums of a tile to different banks
  static constexpr int kMostTileSums = kWarps * 2 * kTokens * kSumPitch;  ///< floats of the sums of a round
  static constexpr int kMostPassSums = 4096;                              ///< values of y of a pass
  static constexpr int kMostOwnSums = kMostPassSums + 8 * 16;  ///< floats of its sums: shares of rows are rounded up

  int token_tiles = 1;  ///< of a block: 1 or 2
  int token_groups = 1;
  int cluster = 1;
  int row_groups = 1;
  int round_tiles = 1;  ///< of a warp: 2 for one token tile

  HXQ_HOST_DEVICE int tokens() const { return token_tiles * kTokens; }
  HXQ_HOST_DEVICE int round_rows() const { return row_groups * round_tiles * kTileRows; }
  HXQ_HOST_DEVICE int pass_rows() const { return pass_rounds * round_rows(); }

  static_assert(kWarps * 2 * kTileRows * kTokens <= kMostPassSums);  // a round fits
  void set_pass(int64_t cluster_rows) {
    const int64_t all_rounds = ceil_div<int64_t>(cluster_rows, round_rows());
    const int most_rows = kMostPassSums / tokens();
    pass_rounds = static_cast<int>(std::clamp<int64_t>(most_rows / round_rows(), 1, all_rounds));
    set_own_rows(ceil_div(pass_rows(), cluster));
  }
};

/// How x is cut. `parts`: numbers for an element.
struct SkinnyInput {
  int64_t units, most_units;  ///< of a row, and of a block, at most
  int token_tiles;

  SkinnyInput(int64_t cols, int64_t tokens, int parts)
      : units(ceil_div<int64_t>(cols, SkinnyPlan::kUnitCols)), token_tiles(tokens > SkinnyPlan::kTokens ? 2 : 1) {
    most_units = SkinnyPlan::kMostUnits / (token_tiles * parts);
  }
  /// Whether clusters of n blocks hold a row, and run at all: `clusters[n]` run at once; [1]: the multiprocessors.
  bool fits(int n, const int* clusters) const { return clusters[n] > 0 && ceil_div<int64_t>(units, n) <= most_units; }
};

inline constexpr int kMostSkinnyCluster = 8;

/// Whether there is a plan.
inline bool fits_skinny_gemm(int64_t cols, int64_t tokens, int parts, const int* clusters) {
  const SkinnyInput x(cols, tokens, parts);
  for (int n = 1; n <= kMostSkinnyCluster; ++n) {
    if (x.fits(n, clusters)) return true;
  }
  return false;
}

/// The plan that takes the fewest clocks by estimate; no clusters: there is none. All at least 1.
inline SkinnyPlan plan_skinny_gemm(int64_t rows, int64_t cols, int64_t tokens, int parts, const int* clusters) {
  SkinnyPlan best;
  const SkinnyInput x(cols, tokens, parts);
  int64_t best_cost = -1;
  for (int cluster = 1; cluster <= kMostSkinnyCluster; ++cluster) {
    if (!x.fits(cluster, clusters)) continue;
    SkinnyPlan plan;
    plan.units = static_cast<int>(ceil_div<int64_t>(x.units, cluster));
    plan.token_tiles = x.token_tiles;
    plan.token_groups = static_cast<int>(ceil_div<int64_t>(tokens, plan.tokens()));
    plan.cluster = cluster;
    plan.round_tiles = 2 / x.token_tiles;
    const int64_t most_clusters = std::max(1, clusters[cluster] / plan.token_groups);
    plan.clusters = std::min(most_clusters, ceil_div<int64_t>(rows, SkinnyPlan::kTileRows));
    const int64_t cluster_rows = ceil_div(rows, plan.clusters);
    const int64_t tiles = ceil_div<int64_t>(cluster_rows, SkinnyPlan::kTileRows);
    for (int log2 = 0; 1 << log2 <= SkinnyPlan::kMostColGroups; ++log2) {
      plan.col_groups_log2 = log2;
      plan.row_groups = SkinnyPlan::kWarps >> log2;
      plan.set_pass(cluster_rows);
      // Clocks: of a warp's instructions, of weights on their way, and of what ends rounds and passes.
      const int64_t warp_tiles = ceil_div<int64_t>(tiles, plan.row_groups);
      const int64_t warp_units = ceil_div(plan.units, plan.col_groups());
      const int64_t instructions = warp_tiles * (warp_units * 1000 + 300);
      const int64_t memory = cluster_rows * plan.units * SkinnyPlan::kUnitCols / 13;
      const int64_t rounds = ceil_div<int64_t>(warp_tiles, plan.round_tiles);
      const int64_t ends = rounds * 500 + (rounds / plan.pass_rounds + 1) * (cluster > 1 ? 1000 : 300);
      const int64_t cost = std::max(instructions, memory) + ends;
      if (best_cost >= 0 && cost >= best_cost) continue;
      best = plan;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace hxq::cuda
