// What a block of attention_hopper.cu has, and how queries get there.

#pragma once

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/hopper_transposed.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda {

/// Queries and weights are kParts numbers of binary16 each, keys and values kCacheParts.
template <int kHeadDim, int kQueryParts, int kKeyParts>
struct HopperShape {
  static constexpr int kDim = kHeadDim, kParts = kQueryParts, kCacheParts = kKeyParts;
  static constexpr bool kIsExact = kParts == 2;
  static constexpr int kGroup = 128;                  ///< threads of a warpgroup
  static constexpr int kGroups = kDim == 64 ? 3 : 2;  ///< warpgroups that multiply
  static constexpr int kRows = 64 * kGroups;          ///< of queries
  static constexpr int kTile = static_cast<int>(KvCacheView::kTile);
  static constexpr int kTiles = kIsExact ? 1 : 2;  ///< of a step: tensor cores cut off what long sums would keep
  static constexpr int kKeys = kTile * kTiles;     ///< positions of a step
  static constexpr int kStages = kDim == 64 ? 4 : 2;
  static constexpr int kThreads = kGroup * (kGroups + 1);
  static constexpr int kMultiplierRegisters = kGroups == 3 ? 160 : 240, kBringerRegisters = kGroups == 3 ? 32 : 24;
  using Tile = WarpgroupTile<kDim, kCacheParts>;
};

template <class Shape>
struct HopperMemory {
  static constexpr int kStages = Shape::kStages;
  alignas(1024) __half queries[Shape::kParts][Shape::kDim / 64][Shape::kRows][64];
  alignas(1024) decltype(Shape::Tile::keys) keys[kStages][Shape::kTiles];
  alignas(1024) decltype(Shape::Tile::values) values[kStages][Shape::kTiles];
  float4 scales[kStages][Shape::kTiles];  ///< of keys and of values
  float row_scale[Shape::kRows];
  uint64_t full_keys[kStages], empty_keys[kStages], full_values[kStages], empty_values[kStages];
};

struct HopperParameters {
  AttentionArgs args;
  int group;
  bool moves_pairs;  ///< rows of q and y are aligned for two elements at a time
  RoundedTiles placed;
  AttentionParts parts;  ///< of a block's positions
};

/// The queries of a segment that share a key-value head, as one list.
struct QueryList {
  const HopperParameters& p;
  int first_row, count;

  /// Of a query's place in the list; of the last one where there is none.
  __device__ int position_of(int place) const { return p.args.batch.positions[row_of(place)]; }
  __device__ int64_t row_of(int place) const { return first_row + PrefillQuery(min(place, count - 1), p.group).token; }
  __device__ int64_t head_of(int place) const {
    return int64_t{blockIdx.x} * p.group + PrefillQuery(min(place, count - 1), p.group).head_of_group;
  }
  /// Where a query's row of its head begins.
  __device__ int64_t offset_of(int place, int64_t stride) const {
    return row_of(place) * stride + head_of(place) * p.args.cache.head_dim;
  }
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};

/// A warp brings its own queries, scaled so that powers of two of scores are weights. All are under way before any
/// is waited for.
template <class Shape, class T, bool kInPairs>
__device__ inline void load_queries_as(const QueryList& list, int first, HopperMemory<Shape>& shared) {
  constexpr int kPairs = Shape::kDim / 64;
  const AttentionArgs& args = list.p.args;
  const float factor = args.scale * kLog2E;
  const auto dim = static_cast<int>(args.cache.head_dim);
  const auto* from = static_cast<const T*>(args.q.data);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t own_offset = list.offset_of(first + 16 * warp + lane % 16, args.q.stride);
  Pair<T> pair[16][kPairs];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const T* row = from + __shfl_sync(kAllLanes, own_offset, i);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const T* at = row + min(64 * j + 2 * lane, dim - 2);
      if constexpr (kInPairs) {
        pair[i][j] = *reinterpret_cast<const Pair<T>*>(at);
      } else {
        pair[i][j] = {at[0], at[1]};
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int row = 16 * warp + i, col = (lane / 4 ^ row % 8) * 8 + lane % 4 * 2;
    float2 v[kPairs];
    float largest = 0;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float own_factor = first + row < list.count && 64 * j + 2 * lane < dim ? factor : 0.0f;
      v[j] = make_float2(own_factor * static_cast<float>(pair[i][j].x), own_factor * static_cast<float>(pair[i][j].y));
      largest = fmaxf(largest, fmaxf(fabsf(v[j].x), fabsf(v[j].y)));
    }
    const float scale = fmaxf(scale_for(max_lanes(largest)), kLeastScale), inverse = inverse_of_scale(scale);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      uint32_t parts[Shape::kParts];
      split(v[j].x * inverse, v[j].y * inverse, parts);
#pragma unroll
      for (int part = 0; part < Shape::kParts; ++part)
        *reinterpret_cast<uint32_t*>(&shared.queries[part][j][row][col]) = parts[part];
    }
    if (lane == 0) shared.row_scale[row] = scale;
  }
}

/// The block's queries from place `first` of the list on.
template <class Shape>
__device__ inline void load_queries(const QueryList& list, int first, HopperMemory<Shape>& shared) {
  with_type(list.p.args.q.dtype, [&]<class T>(T) {
    if (list.p.moves_pairs) {
      load_queries_as<Shape, T, true>(list, first, shared);
    } else {
      load_queries_as<Shape, T, false>(list, first, shared);
    }
  });
}

}  // namespace hxq::cuda
