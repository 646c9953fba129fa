#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/host_device.h"

/// How layers of Mamba for very few sequences are spread over all of a GPU.
///
/// Clusters of 16 blocks. Rows of in_proj are spread over all blocks. Each cluster computes all channels, a block
/// adjacent ones: their columns of x_proj and out_proj, their rows of dt_proj. A cluster has some rows of out_proj, and
/// each of its blocks owns some of those. Within a block, warps have adjacent rows of what the block has.
namespace hxq::cuda {

/// Adjacent rows that a block has of a matrix, in ranges of adjacent rows: of a warp each, or of half a warp.
struct MambaSpreadRows {
  int first, count;      ///< in the matrix
  int of_warp, of_half;  ///< at most; `of_half` is 0 where warps are not halved

  HXQ_HOST_DEVICE int begin(int range) const {  // in the block
    const int row = of_half > 0 ? range / 2 * of_warp + range % 2 * of_half : range * of_warp;
    return row < count ? row : count;
  }
  HXQ_HOST_DEVICE int size(int range) const { return begin(range + 1) - begin(range); }
};

struct MambaSpreadPlan {
  static constexpr int kBlocks = 16;            ///< of a cluster
  static constexpr int kWarps = 8;              ///< that multiply
  static constexpr int kWorkers = kWarps * 32;  ///< threads; others bring what they need
  static constexpr int kBringers = 128;         ///< of each of two kinds
  static constexpr int kThreads = kWorkers + 2 * kBringers;
  static constexpr int kStepCols = 128;  ///< of a row that a warp takes at a time
  static constexpr int kStates = 16;     ///< of a channel
  static constexpr int kTaps = 4;        ///< of the convolution
  static constexpr int kMostHidden = 1024, kMostChannels = 128, kMostRank = 64;
  static constexpr int kOwners = kBlocks / kWarps;  ///< blocks whose rows of out_proj a warp has
  static constexpr int kMostTokens = 2;
  static constexpr int kMostClusters = 8;
  static constexpr int kPartPitch = 16;                      ///< what the blocks of a cluster add to a row
  static constexpr int kXSlots = 12;                         ///< of a warp, for its rows of x_proj
  static constexpr int kListed = 256, kRanges = 2 * kWarps;  ///< outliers of a product that are brought; of half warps
  static constexpr int kLayersThere = 4;
  static constexpr int kLayerBytes = 384;

  enum Product { kIn, kX, kDt, kOut, kProducts };

  /// What one kernel takes, and what a wide one does, of one sequence. Rows are those of a warp, of dt_proj half a
  /// warp.
  struct Widths {
    int hidden, in_rows, x_rows, dt_rows, out_rows;
  };
  static constexpr Widths kNarrow = {768, 4, 10, 6, 14}, kWide = {kMostHidden, 5, 12, 8, 20};

  int hidden, inner, rank, tokens;
  bool is_wide;
  int clusters;  ///< 0: there is no plan
  int channels;  ///< of a block
  int in_rows_of_warp, x_rows_of_warp;
  int out_rows;  ///< rows of out_proj that a block owns

  // Where what lies in shared memory, in bytes from its start.
  uint32_t layers_at;  ///< [kLayersThere]
  uint32_t barriers_at;
  uint32_t squares_at;    ///< [tokens, kWarps]
  uint32_t x_at;          ///< of in_proj [tokens, steps * kStepCols]
  uint32_t u_at;          ///< [3, tokens, kMostChannels]: u, silu(z), y
  uint32_t dbc_at;        ///< [tokens, x_rows]
  uint32_t x_parts_at;    ///< [kBlocks, tokens, kWarps, kXSlots]
  uint32_t out_parts_at;  ///< [tokens, out_rows, kPartPitch]
  /// Of two layers in turn, of products: where the outliers of ranges begin [kRanges + 1], the matrix's first of them,
  /// outliers [kListed].
  uint32_t lists_at;
  uint32_t begins_at;    ///< of two layers in turn, of products: where the outliers of rows begin [kMostRows + 1]
  uint32_t outliers_at;  ///< of products: columns [kListed], and then changes
  uint32_t norm_at;      ///< [hidden]
  uint32_t vectors_at;   ///< [kVectors, pitch]
  uint32_t past_at;      ///< of two layers in turn, the convolution's states [tokens, kTaps - 1, pitch]
  uint32_t states_at;    ///< likewise [tokens, kStates, pitch]; a half warp reads beyond where it has few rows
  uint32_t bytes_at[kProducts];  ///< of weights
  uint32_t bytes;

  /// Vectors of a block's channels: the convolution's filter and bias, those of dt and d, the rates.
  enum Vector { kFilter, kConvBias = kTaps, kDtBias, kSkip, kRates, kVectors = kRates + kStates };

  static constexpr uint32_t kBeginsBytes = (4 * (kRanges + 2) + 15) / 16 * 16, kListBytes = kBeginsBytes + 8 * kListed;
  static constexpr int kMostRows = kWarps * kWide.out_rows;  ///< of a product of a block
  static constexpr uint32_t kRowBeginsBytes = 4 * (kMostRows + 4);
  static constexpr uint32_t kStart = 1024, kTablesBytes = 65536, kTablesAt = kTablesBytes - kStart;
  static constexpr uint32_t kMostBytes = 227 * 1024 - kStart;

  HXQ_HOST_DEVICE int blocks() const { return clusters * kBlocks; }
  HXQ_HOST_DEVICE int first_channel(int block) const { return block * channels < inner ? block * channels : inner; }
  HXQ_HOST_DEVICE int channels_of(int block) const { return first_channel(block + 1) - first_channel(block); }
  /// Of block `block` of cluster `cluster`.
  HXQ_HOST_DEVICE MambaSpreadRows rows(int product, int cluster, int block) const {
    if (product == kIn) {  // each block has some: so what all rows of in_proj say, all blocks have said
      const int number = cluster * kBlocks + block, first = first_in_row(number);
      return {first, first_in_row(number + 1) - first, in_rows_of_warp, 0};
    }
    if (product == kX) return {0, x_rows(), x_rows_of_warp, 0};
    if (product == kDt) return {first_channel(block), channels_of(block), dt_rows_of_warp(), dt_rows_of_half()};
    const int first = cluster * kBlocks * out_rows, left = hidden - first, most = kBlocks * out_rows;
    return {first, left < most ? left : most, kOwners * out_rows, 0};
  }
  HXQ_HOST_DEVICE int first_in_row(int block) const { return block * 2 * inner / blocks(); }
  HXQ_HOST_DEVICE int x_rows() const { return rank + 2 * kStates; }
  HXQ_HOST_DEVICE int x_pitch() const { return is_wide ? kWide.hidden : kNarrow.hidden; }
  HXQ_HOST_DEVICE int pitch() const { return channels + 4; }  ///< so that states of a channel lie in different banks
  HXQ_HOST_DEVICE int dt_rows_of_warp() const { return channels / kWarps; }
  HXQ_HOST_DEVICE int dt_rows_of_half() const { return dt_rows_of_warp() / 2; }

  /// Words that blocks of different clusters exchange.
  static constexpr int kXzWords = 2 * kBlocks * kMostChannels * kMostTokens;
  static constexpr int kHiddenWords = kMostHidden * kMostTokens;
  static constexpr int kEpochWords = 16;
  static constexpr int kExchangeWords = kEpochWords + kXzWords + kHiddenWords;
};

inline MambaSpreadPlan plan_mamba_spread(int64_t hidden, int64_t inner, int64_t rank, int64_t sequences, int room) {
  using P = MambaSpreadPlan;
  P plan = {};
  if (hidden <= 0 || inner <= 0 || rank <= 0 || hidden % 16 != 0 || inner % 16 != 0 || rank % 16 != 0 ||
      hidden > P::kMostHidden || inner > P::kBlocks * P::kMostChannels || rank > P::kMostRank || sequences < 1 ||
      sequences > P::kMostTokens || room < 1) {
    return plan;
  }
  plan.hidden = static_cast<int>(hidden);
  plan.inner = static_cast<int>(inner);
  plan.rank = static_cast<int>(rank);
  plan.tokens = static_cast<int>(sequences);
  plan.out_rows = ceil_div(plan.hidden, P::kBlocks * std::min(room, P::kMostClusters));
  plan.clusters = ceil_div(plan.hidden, P::kBlocks * plan.out_rows);  // each has rows: so who has all of h knows of all
  plan.channels = ceil_div(ceil_div(plan.inner, P::kBlocks), 16) * 16;
  const int in_rows = ceil_div(2 * plan.inner, plan.blocks());
  plan.in_rows_of_warp = ceil_div(in_rows, P::kWarps);
  plan.x_rows_of_warp = ceil_div(plan.x_rows(), P::kWarps);
  const auto is_in = [&](const P::Widths& widths) {
    return hidden <= widths.hidden && plan.in_rows_of_warp <= widths.in_rows && plan.x_rows_of_warp <= widths.x_rows &&
           plan.dt_rows_of_half() <= widths.dt_rows && P::kOwners * plan.out_rows <= widths.out_rows;
  };
  plan.is_wide = !is_in(P::kNarrow);
  uint32_t below = 0, above = P::kTablesAt + P::kTablesBytes;
  const auto take = [&](int64_t bytes) {
    const auto size = static_cast<uint32_t>((bytes + 127) / 128 * 128);
    uint32_t& at = below + size <= P::kTablesAt ? below : above;
    const uint32_t taken = at;
    at += size;
    return taken;
  };
  plan.barriers_at = take(16 * 8);
  plan.layers_at = take(P::kLayersThere * P::kLayerBytes);
  plan.squares_at = take(4 * plan.tokens * P::kWarps);
  plan.x_at = take(int64_t{4} * plan.tokens * plan.x_pitch());
  plan.u_at = take(int64_t{4} * 3 * plan.tokens * P::kMostChannels);
  plan.dbc_at = take(int64_t{4} * plan.tokens * plan.x_rows());
  plan.out_parts_at = take(int64_t{4} * plan.tokens * plan.out_rows * P::kPartPitch);
  plan.x_parts_at = take(int64_t{4} * P::kBlocks * plan.tokens * P::kWarps * P::kXSlots);
  plan.lists_at = take(int64_t{8} * P::kListBytes);
  plan.begins_at = take(int64_t{8} * P::kRowBeginsBytes);
  plan.outliers_at = take(int64_t{4} * 8 * P::kListed);
  plan.norm_at = take(int64_t{4} * hidden);
  plan.vectors_at = take(int64_t{4} * P::kVectors * plan.pitch());
  plan.past_at = take(int64_t{8} * plan.tokens * (P::kTaps - 1) * plan.pitch());
  plan.states_at = take(int64_t{8} * plan.tokens * P::kStates * plan.pitch() + 4 * P::kWide.dt_rows);
  plan.bytes_at[P::kDt] = take(int64_t{plan.channels} * rank);
  plan.bytes_at[P::kX] = take(int64_t{plan.x_rows()} * plan.channels);
  plan.bytes_at[P::kOut] = take(int64_t{P::kBlocks} * plan.out_rows * plan.channels);
  plan.bytes_at[P::kIn] = take(int64_t{in_rows} * hidden);
  plan.bytes = above;
  const bool fits = 2 * plan.inner >= plan.blocks() && plan.bytes <= P::kMostBytes &&
                    (!plan.is_wide || (is_in(P::kWide) && plan.tokens == 1));
  if (!fits) plan.clusters = 0;
  return plan;
}

}  // namespace hxq::cuda
