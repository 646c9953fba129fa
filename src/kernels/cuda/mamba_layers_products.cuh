// Products of the kernel of Mamba's layers: the bytes of weights on their way, and tensor cores.

#pragma once

#include "kernels/cuda/mamba_layers_memory.cuh"

namespace hxq::cuda::mamba_layers_parts {

/// Bytes of weights that a thread copies and multiplies itself: a group of tiles and a unit at a time, in the order of
/// products and layers.
class Fetcher {
  using Plan = MambaLayersPlan;

 public:
  __device__ Fetcher(const Parameters& p, int first_channel, int own)
      : p_(p), first_channel_(first_channel), own_(own) {}

  /// Asks for the first group. Layers must be in shared memory three ahead of the one whose products are made: a warp
  /// that takes part in one of its products asks for the next one's, and finds out where that after it begins.
  __device__ void start() {
    begin_group();
    fetch();
  }

  /// Asks for the next group. Behind the end of rows and columns there is nothing: slots keep what they have, and x is
  /// zero or nothing is made of the sums.
  __device__ void fetch() {
    if (layer_ == p_.layers) return;
    const uint32_t taken = unit_ * Plan::kUnitCols < cols_ ? taken_ : 0;
    const unsigned char* from = from_;
#pragma unroll
    for (int i = 0; i < Plan::kMostGroupTiles; ++i) {
      if (taken & 1u << 2 * i) copy_async<16>(slot(i, 0), from);
      if (taken & 2u << 2 * i) copy_async<16>(slot(i, 1), from + lower_);
      from += i == 0 ? to_second_ : to_third_;
    }
    end_copy_group();
    const Plan::Tiling& tiling = p_.plan.tiling[phase_];
    unit_ += tiling.col_groups();
    from_ += tiling.col_groups() * Plan::kUnitCols;
    if (unit_ < tiling.units) return;
    tile_ += Plan::group_tiles(phase_);
    begin_group();
  }

  /// Where the thread's 16 bytes of a tile's upper or lower row come.
  __device__ unsigned char* slot(int tile, int lower) const {
    const uint32_t thread = threadIdx.x * 16, array = static_cast<uint32_t>(tile * 2 + lower) * 16 * Plan::kThreads;
    const uint32_t in_gaps = Plan::kTableAt + 128 + thread / 128 * 256 + thread % 128 + array * 2;
    return dynamic_shared + (tile < 2 ? in_gaps : p_.plan.slots_at + thread + lower * 16 * Plan::kThreads);
  }

 private:
  /// Finds the warp's next group, which begins with `tile_` of its tiles, or is one of a later product.
  __device__ void begin_group() {
    const Plan& plan = p_.plan;
    while (tile_ >= plan.tiling[phase_].warp_tiles ||
           plan.tiling[phase_].first_tile_of(warp()) + tile_ >= plan.tiling[phase_].tiles) {
      tile_ = 0;
      if (++phase_ < Plan::kPhases) continue;
      phase_ = 0;
      if (++layer_ == p_.layers) return;
    }
    const Plan::Tiling& tiling = plan.tiling[phase_];
    const bool has_own_rows = phase_ == Plan::kIn || phase_ == Plan::kDt;
    const int stride = plan.cols_of(phase_), rows = has_own_rows ? own_ : plan.rows_of(phase_);
    const int first_tile = tiling.first_tile_of(warp()) + tile_, lane_col = lane() % 4 * 16;
    unit_ = tiling.first_unit_of(warp());
    cols_ = (has_own_rows ? plan.cols_of(phase_) : own_) - lane_col;
    lower_ = 8 * stride;
    taken_ = 0;
    int64_t at[Plan::kMostGroupTiles];
#pragma unroll
    for (int i = 0; i < Plan::kMostGroupTiles; ++i) {
      int row = (first_tile + i) * Plan::kTileRows + lane() / 4;
      const bool is_tile = i < Plan::group_tiles(phase_) && first_tile + i < tiling.tiles;
      int64_t of_matrix = row;
      if (phase_ == Plan::kIn && row >= plan.channels) {  // rows of z lie behind all of x
        row -= plan.channels;
        of_matrix += plan.inner - plan.channels;
      }
      at[i] = of_matrix * stride;
      if (is_tile && row < rows) taken_ |= 1u << 2 * i;
      if (is_tile && row + 8 < rows) taken_ |= 2u << 2 * i;
    }
    to_second_ = static_cast<uint32_t>(at[1] - at[0]);
    to_third_ = static_cast<uint32_t>(at[2] - at[1]);
    from_ = shared_layer(plan, layer_).matrix[phase_].indices +
            (has_own_rows ? int64_t{first_channel_} * stride : first_channel_) + at[0] + unit_ * Plan::kUnitCols +
            lane_col;
  }

  const Parameters& p_;
  const int first_channel_, own_;
  int layer_ = 0, phase_ = 0, tile_ = 0;
  int unit_ = 0, cols_ = 0;  ///< columns of the block's part, counted from the lane's first one
  uint32_t taken_ = 0;       ///< bits: which of its two rows of each tile the lane has
  uint32_t lower_ = 0, to_second_ = 0, to_third_ = 0;  ///< bytes from its row to the other one, and from tile to tile
  const unsigned char* from_ = nullptr;
};

/// A thread's part of the products.
template <int kTokenTiles, bool kTwoParts>
class Products {
  using Plan = MambaLayersPlan;
  static constexpr int kParts = kTwoParts ? 2 : 1;

 public:
  __device__ explicit Products(const Parameters& p)
      : p_(p), lane_base_(WideTable::lane_base(dynamic_shared + Plan::kTableAt)) {}

  /// Calls `leave(tile, sums)` for the warp's tiles.
  template <int kPhase, class Leave>
  __device__ void multiply(Fetcher& fetcher, const Leave& leave) const {
    constexpr int kTiles = Plan::group_tiles(kPhase);
    const Plan::Tiling& tiling = p_.plan.tiling[kPhase];
    const Operand<kTokenTiles, kTwoParts> x(kPhase == Plan::kIn   ? p_.plan.x_at
                                            : kPhase == Plan::kDt ? p_.plan.dt_at
                                                                  : p_.plan.u_at);
#pragma unroll 1
    for (int first = 0; first < tiling.warp_tiles; first += kTiles) {
      const int first_tile = tiling.first_tile_of(warp()) + first;
      if (first_tile >= tiling.tiles) break;
      float sum[kTiles][kTokenTiles][4] = {};
#pragma unroll 1
      for (int unit = tiling.first_unit_of(warp()); unit < tiling.units; unit += tiling.col_groups()) {
        // Before the first unit of a layer the convolution's states were asked for, too.
        if (kPhase == Plan::kIn && first == 0 && unit < tiling.col_groups()) {
          wait_for_copies<1>();
        } else {
          wait_for_copies<0>();
        }
        uint4 upper[kTiles], lower[kTiles];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          upper[i] = *reinterpret_cast<const uint4*>(fetcher.slot(i, 0));
          lower[i] = *reinterpret_cast<const uint4*>(fetcher.slot(i, 1));
        }
        fetcher.fetch();
        multiply_unit(x, unit, upper, lower, sum);
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (first_tile + i < tiling.tiles) leave(first_tile + i, sum[i]);
      }
    }
  }

 private:
  template <int kTiles>
  __device__ void multiply_unit(const Operand<kTokenTiles, kTwoParts>& x, int unit, const uint4 (&upper)[kTiles],
                                const uint4 (&lower)[kTiles], float (&sum)[kTiles][kTokenTiles][4]) const {
    // Tensor cores cut off what does not fit in a sum: for two parts, each part's and each unit's are made in float.
    float part[kTiles][kTokenTiles][kParts][4] = {};
#pragma unroll 2
    for (int q = 0; q < 4; ++q) {  // more lookups ahead of their products have no registers
      uint4 b[kTokenTiles][kParts];
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < kParts; ++i) b[n][i] = x.lane_x(unit, n, i)[q * 32];
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint32_t up = word(upper[t], q), low = word(lower[t], q);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t a[4] = {WideTable::look_up(lane_base_, up, j * 2), WideTable::look_up(lane_base_, low, j * 2),
                                 WideTable::look_up(lane_base_, up, j * 2 + 1),
                                 WideTable::look_up(lane_base_, low, j * 2 + 1)};
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
            for (int i = 0; i < kParts; ++i) {
              float(&to)[4] = kTwoParts ? part[t][n][i] : sum[t][n];
              multiply_add_tf32(to, a, j == 0 ? b[n][i].x : b[n][i].z, j == 0 ? b[n][i].y : b[n][i].w);
            }
          }
        }
      }
    }
    if constexpr (kTwoParts) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[t][n][i] += part[t][n][0][i] + part[t][n][kParts - 1][i];
        }
      }
    }
  }

  __device__ static uint32_t word(const uint4& bytes, int i) {
    return i == 0 ? bytes.x : i == 1 ? bytes.y : i == 2 ? bytes.z : bytes.w;
  }

  const Parameters& p_;
  const uint32_t lane_base_;
};

}  // namespace hxq::cuda::mamba_layers_parts
