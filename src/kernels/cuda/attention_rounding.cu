// Brings keys and values that attention of many rows sees into the form that is multiplied, once for all of its blocks.
// A block has a head's part of a tile, all of it in registers.

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/attention_prefill_memory.cuh"
#include "kernels/cuda/attention_rounding.cuh"

namespace hxq::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTile = static_cast<int>(KvCacheView::kTile);
constexpr float kLeastValueScale = 0x1p-126f;  ///< of zeros, so that others of their step choose its unit

struct Parameters {
  AttentionArgs args;
  RoundedTiles to;
};

/// A head's part of the tile that goes to the block's slot.
struct Source {
  bool exists;
  int known;  ///< positions of the tile that the cache holds
  const void* tile = nullptr;

  /// Reads nothing that kernels write.
  __device__ explicit Source(const Parameters& p) {
    const auto place = static_cast<int>(blockIdx.y);
    const RoundedSlot slot(p.args, p.to, place);
    exists = slot.exists;
    if (!exists) return;
    const SeenTiles seen(p.args, p.to, slot.sequence);
    const int number = seen.first + place - slot.first_slot;
    known = min(seen.known - number * kTile, kTile);
    tile = static_cast<const void* const*>(p.args.cache.tiles[slot.sequence])[number];
  }
};

/// The block's slot and head.
template <class Tile>
__device__ inline Tile& destination(const Parameters& p) {
  return static_cast<Tile*>(p.to.data)[blockIdx.y * p.args.cache.heads + blockIdx.x];
}

/// A warp rounds 16 columns. A lane has four columns of every 8th row. Rows from `rows` on and columns from `cols` on
/// may be anything: zeros.
template <int kParts, int kRows, int kCols>
__device__ inline void round_columns(const float* from, __half (&to)[kParts][kRows][kCols], int first, int rows,
                                     int cols, float factor, float* scales) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane / 4, col = first + lane % 4 * 4;
  float4 held[kRows / 8];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kRows / 8; ++i) {
    held[i] = row + 8 * i < rows ? *reinterpret_cast<const float4*>(from + (row + 8 * i) * kCols + col)
                                 : make_float4(0, 0, 0, 0);
  }
#pragma unroll
  for (float4& v : held) {
    if (col + 4 > cols) {
      if (col >= cols) v.x = 0;
      if (col + 1 >= cols) v.y = 0;
      if (col + 2 >= cols) v.z = 0;
      v.w = 0;
    }
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  }
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
#pragma unroll
  for (int step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
  const float scale = scale_for(largest), inverse = inverse_of_scale(scale);
#pragma unroll
  for (int i = 0; i < kRows / 8; ++i) {
    uint32_t left[kParts], right[kParts];
    split(held[i].x * inverse, held[i].y * inverse, left);
    split(held[i].z * inverse, held[i].w * inverse, right);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      *reinterpret_cast<uint2*>(&to[part][row + 8 * i][col]) = make_uint2(left[part], right[part]);
    }
  }
  if (lane < 4 && lane % 2 == 0) scales[col / 8] = scale * factor;
}

template <int kDim, int kParts>
__global__ void __launch_bounds__(32 * kWarps) round_cache_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  const Source source(p);
  wait_for_predecessors();
  if (!source.exists) return;
  auto& to = destination<RoundedTile<kDim, kParts>>(p);
  const auto warp = static_cast<int>(threadIdx.x / 32);
  const float* keys = static_cast<const float*>(source.tile) + int64_t{blockIdx.x} * kTile * kDim;
  round_columns(keys, to.keys, 16 * warp, kDim, source.known, 1.0f, to.key_scale);
  const float* values = keys + p.args.cache.heads * kTile * kDim;
#pragma unroll 1
  for (int strip = warp; strip < kDim / 16; strip += kWarps) {
    round_columns(values, to.values, 16 * strip, source.known, kDim, 1 / kWeightScale, to.value_scale);
  }
}

__device__ inline float4 load_four(const float* at) { return *reinterpret_cast<const float4*>(at); }
__device__ inline float4 load_four(const __half* at) {
  const uint2 bits = *reinterpret_cast<const uint2*>(at);
  const float2 left = __half22float2(*reinterpret_cast<const __half2*>(&bits.x)),
               right = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
  return make_float4(left.x, left.y, right.x, right.y);
}

/// Rows of kCols columns become pieces of 64 columns, as `WarpgroupTile` has them. What is at `rows` and `cols` or
/// further may be anything: zeros. Returns what floats were divided by, `least` at least.
template <int kRows, int kCols, int kParts, class Element>
__device__ inline float place_matrix(const Element* from, int rows, int cols, __half (&to)[kParts][kRows * kCols],
                                     float least, float* shared) {
  constexpr int kFours = kRows * kCols / 4 / (32 * kWarps);
  const auto thread = static_cast<int>(threadIdx.x);
  float4 held[kFours];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int four = thread + 32 * kWarps * i, row = four / (kCols / 4), col = four % (kCols / 4) * 4;
    held[i] = row < rows && col < cols ? load_four(from + 4 * four) : make_float4(0, 0, 0, 0);
    float4& v = held[i];
    if (col + 1 >= cols) v.y = 0;
    if (col + 2 >= cols) v.z = 0;
    if (col + 3 >= cols) v.w = 0;
  }
  float scale = 1;
  if constexpr (std::is_same_v<Element, float>) {
#pragma unroll
    for (const float4& v : held) {
      largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }
    largest = max_block(largest, shared);
    scale = fmaxf(largest > 0 ? scale_for(largest) : 0.0f, least);
  }
  const float inverse = inverse_of_scale(scale);
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int four = thread + 32 * kWarps * i, row = four / (kCols / 4), col = four % (kCols / 4) * 4;
    const int place = col / 64 * kRows * 64 + row * 64 + (col % 64 / 8 ^ row % 8) * 8 + col % 8;
    uint32_t left[kParts], right[kParts];
    split(held[i].x * inverse, held[i].y * inverse, left);
    split(held[i].z * inverse, held[i].w * inverse, right);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      *reinterpret_cast<uint2*>(&to[part][place]) = make_uint2(left[part], right[part]);
  }
  return scale;
}

/// Blocks have keys (0) or values (1).
template <int kDim, int kParts, class Element>
__global__ void __launch_bounds__(32 * kWarps) place_cache_kernel(const __grid_constant__ Parameters p) {
  __shared__ float largest[32];
  let_successors_begin();
  const Source source(p);
  wait_for_predecessors();
  if (!source.exists) return;
  auto& to = destination<WarpgroupTile<kDim, kParts>>(p);
  const auto* from = static_cast<const Element*>(source.tile);
  const int64_t head = int64_t{blockIdx.x} * kTile * kDim;
  using Matrix = __half[kParts][kTile * kDim];
  if (blockIdx.z == 0) {
    const float scale = place_matrix<kDim, kTile>(from + head, kDim, source.known, reinterpret_cast<Matrix&>(to.keys),
                                                  kLeastScale, largest);
    if (threadIdx.x == 0) to.key_scale = scale;
  } else {
    const float scale = place_matrix<kTile, kDim>(from + p.args.cache.heads * kTile * kDim + head, source.known, kDim,
                                                  reinterpret_cast<Matrix&>(to.values), kLeastValueScale, largest);
    if (threadIdx.x == 0) to.value_scale = scale;
  }
}

/// Calls with a head's elements and the parts of a number as constants.
template <class Body>
auto with_shape(const AttentionArgs& args, const Body& body) {
  return with_prefill_dim(args, [&]<int kDim>(std::integral_constant<int, kDim> dim) {
    return args.precision == Precision::exact ? body(dim, std::integral_constant<int, 2>())
                                              : body(dim, std::integral_constant<int, 1>());
  });
}

}  // namespace

Status round_cache(const AttentionArgs& args, const RoundedTiles& to, Stream stream) noexcept {
  return with_shape(
      args, [&]<int kDim, int kParts>(std::integral_constant<int, kDim>, std::integral_constant<int, kParts>) {
        static_assert(kTile == 16 * kWarps);
        return launch(round_cache_kernel<kDim, kParts>,
                      {.grid = dim3(static_cast<unsigned>(args.cache.heads), static_cast<unsigned>(to.slots)),
                       .block = dim3(32 * kWarps)},
                      stream, Parameters{.args = args, .to = to});
      });
}

Status place_cache(const AttentionArgs& args, const RoundedTiles& to, Stream stream) noexcept {
  const auto start = [&](auto* kernel) {
    return launch(kernel,
                  {.grid = dim3(static_cast<unsigned>(args.cache.heads), static_cast<unsigned>(to.slots), 2),
                   .block = dim3(32 * kWarps)},
                  stream, Parameters{.args = args, .to = to});
  };
  return with_placed_tile(args, [&]<int kDim, int kParts>(WarpgroupTile<kDim, kParts>*) {
    if constexpr (kParts == 1) {
      if (args.cache.dtype == DType::f16) return start(place_cache_kernel<kDim, kParts, __half>);
    }
    return start(place_cache_kernel<kDim, kParts, float>);
  });
}

size_t rounded_slot_bytes(const AttentionArgs& args) noexcept {
  return with_shape(args,
                    [&]<int kDim, int kParts>(std::integral_constant<int, kDim>, std::integral_constant<int, kParts>) {
                      return sizeof(RoundedTile<kDim, kParts>) * static_cast<size_t>(args.cache.heads);
                    });
}

}  // namespace hxq::cuda
