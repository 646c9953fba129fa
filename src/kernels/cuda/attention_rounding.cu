// Rounds the keys and values that attention of many rows sees, once for all of its blocks. A block has a head's part of
// a tile; its warps have 16 columns at a time, all rows of them in registers.

#include "kernels/cuda/attention_prefill_memory.cuh"
#include "kernels/cuda/attention_rounding.cuh"

namespace hxq::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTile = static_cast<int>(KvCacheView::kTile);

struct Parameters {
  AttentionArgs args;
  RoundedTiles to;
};

/// A lane has four columns of every 8th row. Rows from `rows` on and columns from `cols` on may be anything: zeros.
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
  const auto head = static_cast<int>(blockIdx.x), place = static_cast<int>(blockIdx.y);
  const RoundedSlot slot(p.args, p.to, place);
  const SeenTiles seen(p.args, slot.sequence);
  const int tile = seen.first + place - slot.first_slot, known = min(seen.known - tile * kTile, kTile);
  const float* from = nullptr;
  if (slot.exists) from = static_cast<const float* const*>(p.args.cache.tiles[slot.sequence])[tile];
  wait_for_predecessors();
  if (!slot.exists) return;
  auto& to = static_cast<RoundedTile<kDim, kParts>*>(p.to.data)[place * p.args.cache.heads + head];
  const auto warp = static_cast<int>(threadIdx.x / 32);
  const float* keys = from + int64_t{head} * kTile * kDim;
  round_columns(keys, to.keys, 16 * warp, kDim, known, 1.0f, to.key_scale);
  const float* values = keys + p.args.cache.heads * kTile * kDim;
#pragma unroll 1
  for (int strip = warp; strip < kDim / 16; strip += kWarps) {
    round_columns(values, to.values, 16 * strip, known, kDim, 1 / kWeightScale, to.value_scale);
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

size_t rounded_slot_bytes(const AttentionArgs& args) noexcept {
  return with_shape(args,
                    [&]<int kDim, int kParts>(std::integral_constant<int, kDim>, std::integral_constant<int, kParts>) {
                      return sizeof(RoundedTile<kDim, kParts>) * static_cast<size_t>(args.cache.heads);
                    });
}

}  // namespace hxq::cuda
