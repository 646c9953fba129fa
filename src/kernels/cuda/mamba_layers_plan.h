#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/host_device.h"

/// How layers of Mamba for several sequences are spread over clusters, blocks, warps and lanes.
///
/// A cluster has some sequences, through all layers. Of a layer each of its blocks has `channels` adjacent channels:
/// their rows of in_proj (x, and z) and dt_proj, their columns of x_proj and out_proj. What the blocks add to a row of
/// x_proj or out_proj is added up by the block that owns the row.
///
/// Products are tiles of 16 rows and units of 64 columns: of a tile and a unit, lane l has 16 adjacent columns of rows
/// l / 4 and l / 4 + 8. A row group of warps takes adjacent tiles, and its warps take units in turn.
namespace hxq::cuda {

struct MambaLayersPlan {
  static constexpr int kBlocks = 16;  ///< of a cluster
  static constexpr int kWarps = 16;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTileRows = 16;
  static constexpr int kUnitCols = 64;
  static constexpr int kTileTokens = 8;
  static constexpr int kMostTokens = 16;  ///< of a cluster
  static constexpr int kStates = 16;      ///< of a channel
  static constexpr int kTaps = 4;         ///< of the convolution
  static constexpr int kMostHidden = 1024, kMostChannels = 2048, kMostRank = 256;
  static constexpr int kMostGroupTiles = 3;
  static constexpr int kReciprocalBits = 20;
  static constexpr int kLayersThere = 4;  ///< this one, and those whose weights are asked for next
  static constexpr int kLayerBytes = 576;

  enum Phase { kIn, kX, kDt, kOut, kPhases };

  /// Tiles that a warp multiplies with the same x together. Products of few tiles have one, so that more warps work.
  HXQ_HOST_DEVICE static constexpr int group_tiles(int phase) {
    return phase == kIn || phase == kOut ? kMostGroupTiles : 1;
  }

  /// A product's tiles over warps.
  struct Tiling {
    int tiles = 0, units = 0;  ///< of a block
    int col_groups_log2 = 0, warp_tiles = 0;

    HXQ_HOST_DEVICE int col_groups() const { return 1 << col_groups_log2; }
    HXQ_HOST_DEVICE int first_tile_of(int warp) const { return (warp >> col_groups_log2) * warp_tiles; }
    HXQ_HOST_DEVICE int first_unit_of(int warp) const { return warp & (col_groups() - 1); }
  };

  /// Vectors of a block's channels: the convolution's filter and bias, those of in_proj, d, the bias of dt, a.
  enum Vector {
    kFilter,
    kConvBias = kFilter + kTaps,
    kXBias,
    kZBias,
    kSkip,
    kDtBias,
    kRates,
    kVectors = kRates + kStates
  };

  /// Rows whose outliers the block adds: where their begins and, of the first kListed, columns and changes lie.
  enum Rows { kXOfIn, kZOfIn, kOwnOfX, kOfDt, kOwnOfOut, kRowRanges };
  static constexpr int kListed = 128;

  int hidden, inner, rank;
  int token_tiles, parts;  ///< parts: numbers for an element of x
  int tokens;              ///< of a cluster, the last one may have fewer
  int clusters;
  int channels;    ///< of a block, the last ones may have fewer or none
  int own_hidden;  ///< rows of out_proj that a block owns
  int own_rows;    ///< of x_proj
  int hidden_reciprocal, row_reciprocal, quad_reciprocal, channel_reciprocal, even_reciprocal;
  Tiling tiling[kPhases];
  int chunk_warps;  ///< that have the same 32 channels

  // Where what lies in shared memory, in bytes from its start.
  uint32_t barriers_at;  ///< [kExchanges], and then rows of tokens
  uint32_t layers_at;    ///< [kLayersThere]: what is known of this layer and those next to it
  uint32_t x_at;         ///< x of in_proj [units, token tiles, parts, 4, 32 lanes] of 16 bytes
  uint32_t u_at;         ///< the same of x_proj, later of out_proj
  uint32_t dt_at;        ///< the same of dt_proj
  uint32_t sums_at;      ///< of in_proj [col groups, tokens, in_pitch], of which the first later keep u and z
  uint32_t past_at;      ///< the convolution's states [tokens, taps - 1, channels]
  uint32_t out_at;       ///< what blocks add to own rows of the hidden state [blocks, own_hidden, even tokens]
  uint32_t parts_at;     ///< the same of x_proj [blocks * col groups, own_rows, even tokens]
  uint32_t own_at;       ///< sums of the block's own rows of x_proj [own_rows, even tokens]
  uint32_t bc_at;        ///< B and C [tokens, 2, kStates]
  uint32_t delta_at;     ///< of dt_proj [tokens, delta_pitch]
  uint32_t norm_at;      ///< [hidden]: the weights of the norm
  uint32_t vectors_at;   ///< [kVectors, channels]
  uint32_t h_at;         ///< the block's own rows of the hidden state [own_hidden, even tokens]
  uint32_t stage_at;     ///< the same as others get them [tokens, stage_pitch]
  uint32_t lists_at;     ///< of outliers [kRowRanges, 2, kListed]: columns, and then changes
  uint32_t begins_at;    ///< of outliers of rows: [channels + 1] three times, [own_rows + 1], [own_hidden + 1]
  uint32_t slots_at;     ///< of the third tile of a group
  uint32_t bytes;

  /// What blocks tell each other in a layer.
  enum Exchange { kXParts, kDbc, kOutParts, kHidden, kExchanges };

  /// In the gaps of the table lie slots of two tiles.
  static constexpr uint32_t kStart = 1024, kTableBytes = 65536, kTableAt = kTableBytes - kStart;
  static constexpr uint32_t kMostBytes = 227 * 1024 - kStart;
  static constexpr uint32_t kSlotBytes = 2 * 16 * kThreads;

  /// Which block owns a row of the hidden state, or of x_proj.
  HXQ_HOST_DEVICE int hidden_owner(int row) const { return row * hidden_reciprocal >> kReciprocalBits; }
  HXQ_HOST_DEVICE int row_owner(int row) const { return row * row_reciprocal >> kReciprocalBits; }
  HXQ_HOST_DEVICE int channel_owner(int channel) const { return channel * channel_reciprocal >> kReciprocalBits; }
  /// Of elements [rows, even tokens]: the row.
  HXQ_HOST_DEVICE int even_row(int at) const { return at * even_reciprocal >> kReciprocalBits; }
  /// Of four adjacent rows of tokens, one token after the other: its token.
  HXQ_HOST_DEVICE int quad_token(int quad) const { return quad * quad_reciprocal >> kReciprocalBits; }

  HXQ_HOST_DEVICE int rows_of(int phase) const {
    return phase == kIn ? 2 * inner : phase == kX ? x_rows() : phase == kDt ? inner : hidden;
  }
  HXQ_HOST_DEVICE int cols_of(int phase) const { return phase == kIn ? hidden : phase == kDt ? rank : inner; }
  HXQ_HOST_DEVICE int x_rows() const { return rank + 2 * kStates; }
  HXQ_HOST_DEVICE static int phase_of(int rows) {
    return rows <= kZOfIn ? kIn : rows == kOwnOfX ? kX : rows == kOfDt ? kDt : kOut;
  }
  /// The first of those rows in its matrix, and how many there are.
  HXQ_HOST_DEVICE int first_of(int rows, int block) const {
    return rows == kOwnOfX     ? block * own_rows
           : rows == kOwnOfOut ? block * own_hidden
                               : block * channels + (rows == kZOfIn ? inner : 0);
  }
  HXQ_HOST_DEVICE int count_of(int rows, int block) const {
    return rows == kOwnOfX     ? clamp_rows(x_rows() - block * own_rows, own_rows)
           : rows == kOwnOfOut ? own_hidden_of(block)
                               : clamp_rows(inner - block * channels, channels);
  }
  /// Begins that lie before those of these rows.
  HXQ_HOST_DEVICE int begins_before(int rows) const {
    const int of_channels = rows < kOwnOfX ? rows : rows == kOwnOfOut ? 3 : 2;
    return of_channels * (channels + 1) + (rows > kOwnOfX ? own_rows + 1 : 0);
  }
  HXQ_HOST_DEVICE int in_pitch() const { return 2 * channels + 4; }  ///< so that lanes write to different banks
  HXQ_HOST_DEVICE int delta_pitch() const { return channels + 4; }
  HXQ_HOST_DEVICE int stage_pitch() const { return own_hidden + 4; }
  HXQ_HOST_DEVICE int even_tokens() const { return (tokens + 1) / 2 * 2; }

  /// Bytes that a block gets in an exchange, for clusters of so many tokens.
  HXQ_HOST_DEVICE uint32_t expected_bytes(int exchange, int block, int tokens_here) const {
    const int own_x = clamp_rows(x_rows() - block * own_rows, own_rows), from = kBlocks << tiling[kX].col_groups_log2;
    const int elements = exchange == kXParts     ? from * own_x * even_tokens()
                         : exchange == kDbc      ? (rank * parts + 2 * kStates) * tokens_here
                         : exchange == kOutParts ? kBlocks * own_hidden_of(block) * even_tokens()
                                                 : hidden * tokens_here;
    return 4 * static_cast<uint32_t>(elements);
  }
  /// Rows of the hidden state that a block owns.
  HXQ_HOST_DEVICE int own_hidden_of(int block) const { return clamp_rows(hidden - block * own_hidden, own_hidden); }

 private:
  HXQ_HOST_DEVICE static int clamp_rows(int rows, int most) { return rows < 0 ? 0 : rows < most ? rows : most; }
};

namespace mamba_layers_detail {

/// Regions below and above the table.
class Packer {
 public:
  /// No room: `fits` says so from then on.
  uint32_t take(int64_t bytes) {
    const auto size = static_cast<uint32_t>(ceil_div<int64_t>(bytes, 16) * 16);
    uint32_t& at = below_ + size <= MambaLayersPlan::kTableAt ? below_ : above_;
    const uint32_t taken = at;
    at += size;
    return taken;
  }
  bool fits() const { return above_ <= MambaLayersPlan::kMostBytes; }
  uint32_t end() const { return above_; }

 private:
  uint32_t below_ = 0, above_ = MambaLayersPlan::kTableAt + MambaLayersPlan::kTableBytes;
};

/// Spreads a block's part of a product: the fewest tiles one after the other.
inline MambaLayersPlan::Tiling tile(int phase, int rows, int cols, int most_col_groups) {
  using P = MambaLayersPlan;
  const int group_tiles = P::group_tiles(phase);
  P::Tiling best = {.tiles = ceil_div(rows, P::kTileRows), .units = ceil_div(cols, P::kUnitCols)};
  int best_cost = 0;
  for (int log2 = 0; 1 << log2 <= std::min(best.units, most_col_groups); ++log2) {
    const int groups = ceil_div(best.tiles, (P::kWarps >> log2) * group_tiles);
    const int cost = groups * ceil_div(best.units, 1 << log2);
    if (best_cost > 0 && cost >= best_cost) continue;
    best_cost = cost;
    best.col_groups_log2 = log2;
    best.warp_tiles = groups * group_tiles;
  }
  return best;
}

}  // namespace mamba_layers_detail

/// The plan; no clusters: there is none. `room`: clusters that run at once.
inline MambaLayersPlan plan_mamba_layers(int64_t hidden, int64_t inner, int64_t rank, int64_t sequences, int parts,
                                         int room) {
  using P = MambaLayersPlan;
  P plan = {};
  const bool fits = hidden % P::kTileRows == 0 && inner % P::kTileRows == 0 && rank % P::kTileRows == 0 && hidden > 0 &&
                    inner > 0 && rank > 0 && hidden <= P::kMostHidden && inner <= P::kMostChannels &&
                    rank <= P::kMostRank && room > 0 && sequences > 0 && sequences <= int64_t{room} * P::kMostTokens;
  if (!fits) return plan;
  plan.hidden = static_cast<int>(hidden);
  plan.inner = static_cast<int>(inner);
  plan.rank = static_cast<int>(rank);
  plan.parts = parts;
  plan.tokens = static_cast<int>(ceil_div<int64_t>(sequences, room));
  plan.token_tiles = ceil_div(plan.tokens, P::kTileTokens);
  const auto share = [](int count) { return ceil_div(ceil_div(count, P::kBlocks), P::kTileRows) * P::kTileRows; };
  plan.channels = share(plan.inner);
  plan.own_hidden = share(plan.hidden);
  plan.own_rows = ceil_div(plan.x_rows(), P::kBlocks);
  const auto reciprocal = [](int divisor) { return (1 << P::kReciprocalBits) / divisor + 1; };  // exact for so few rows
  plan.hidden_reciprocal = reciprocal(plan.own_hidden);
  plan.row_reciprocal = reciprocal(plan.own_rows);
  plan.channel_reciprocal = reciprocal(plan.channels);
  plan.even_reciprocal = reciprocal(plan.even_tokens());
  plan.quad_reciprocal = reciprocal(plan.own_hidden / 4);
  plan.chunk_warps = P::kWarps / ceil_div(plan.channels, 32);

  using mamba_layers_detail::tile;
  plan.tiling[P::kIn] = tile(P::kIn, 2 * plan.channels, plan.hidden, 4);
  plan.tiling[P::kX] = tile(P::kX, plan.x_rows(), plan.channels, 2);
  plan.tiling[P::kDt] = tile(P::kDt, plan.channels, plan.rank, 1);
  plan.tiling[P::kOut] = tile(P::kOut, plan.hidden, plan.channels, 1);

  mamba_layers_detail::Packer memory;
  const int64_t tokens = plan.tokens, even = plan.even_tokens();
  const auto operand_bytes = [&](int units) { return int64_t{2048} * units * plan.token_tiles * plan.parts; };
  plan.barriers_at = memory.take(8 * P::kExchanges + 4 * P::kMostTokens);
  plan.layers_at = memory.take(P::kLayersThere * P::kLayerBytes);
  // dt lies where x of in_proj was, until the next hidden state comes there.
  const int64_t delta = 4 * tokens * plan.delta_pitch();
  plan.x_at = memory.take(std::max(operand_bytes(plan.tiling[P::kIn].units), delta));
  plan.delta_at = plan.x_at;
  plan.slots_at = memory.take(P::kSlotBytes);
  // What blocks add to the hidden state comes after the convolution has read what lies there, but for what it keeps.
  const int64_t kept = 4 * tokens * plan.in_pitch(), in_sums = plan.tiling[P::kIn].col_groups() * kept;
  const int64_t past = 4 * tokens * (P::kTaps - 1) * plan.channels;
  plan.sums_at = memory.take(std::max(in_sums + past, kept + 4 * P::kBlocks * even * plan.own_hidden));
  plan.past_at = plan.sums_at + static_cast<uint32_t>(in_sums);
  plan.out_at = plan.sums_at + static_cast<uint32_t>(kept);
  plan.u_at = memory.take(operand_bytes(plan.tiling[P::kX].units));
  plan.parts_at = memory.take(4 * P::kBlocks * plan.tiling[P::kX].col_groups() * even * plan.own_rows);
  plan.vectors_at = memory.take(int64_t{4} * P::kVectors * plan.channels);
  plan.dt_at = memory.take(operand_bytes(plan.tiling[P::kDt].units));
  plan.norm_at = memory.take(4 * hidden);
  plan.h_at = memory.take(4 * even * plan.own_hidden);
  plan.stage_at = memory.take(4 * tokens * plan.stage_pitch());
  plan.bc_at = memory.take(8 * tokens * P::kStates);
  plan.own_at = memory.take(4 * even * plan.own_rows);
  plan.lists_at = memory.take(8 * P::kRowRanges * P::kListed);
  plan.begins_at = memory.take(4 * (plan.begins_before(P::kOwnOfOut) + plan.own_hidden + 1));
  plan.bytes = memory.end();
  const bool has_room = memory.fits() && plan.token_tiles * parts <= 2 && plan.chunk_warps > 0;
  plan.clusters = has_room ? static_cast<int>(ceil_div<int64_t>(sequences, plan.tokens)) : 0;
  return plan;
}

}  // namespace hxq::cuda
