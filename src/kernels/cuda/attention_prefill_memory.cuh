// What a block of attention_prefill.cu has in shared memory, and how it gets there and is multiplied.

#pragma once

#include <type_traits>

#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda {

/// Weights are up to 2^15: the low part of 2^-14 of that is a normal number.
inline constexpr float kWeightExponent = 15;
inline constexpr float kWeightScale = 0x1p15f;

/// Keys and values of a step as tensor cores take them, and the powers of two that strips of 8 columns were divided by,
/// of a cache of floats.
template <int kDim, int kParts>
struct PrefillTiles {
  static constexpr int kKeys = PrefillShape<kDim>::kKeys;
  alignas(16) __half keys[kParts][kDim][spread_row(kKeys)];
  alignas(16) __half values[kParts][kKeys][spread_row(kDim)];
  float key_scale[kKeys / 8], value_scale[kDim / 8];
};

/// Those of the next step as floats. A lane has four columns of every 16th row of a strip.
template <int kDim>
struct ArrivingFloats {
  static constexpr int kKeys = PrefillShape<kDim>::kKeys;
  float4 keys[kKeys / 8][kDim / 16][32];
  float4 values[kDim / 8][kKeys / 16][32];
};

struct NothingArrives {};

/// In place of the type of elements: what `round_cache` made of a cache of floats.
struct Rounded;

template <int kDim, bool kExact, class Element>
struct PrefillMemory {
  static constexpr bool kConverts = std::is_same_v<Element, float>;
  static constexpr bool kScales = kConverts || std::is_same_v<Element, Rounded>;
  static constexpr int kQueryParts = kExact ? 2 : 1;
  static constexpr int kCacheParts = kExact && kScales ? 2 : 1;
  static constexpr int kRows = PrefillShape<kDim>::kRows;

  alignas(16) __half queries[kQueryParts][kRows][spread_row(kDim)];
  float row_scale[kRows];
  int position[kRows];
  alignas(16) PrefillTiles<kDim, kCacheParts> tiles[kConverts ? 1 : 2];
  alignas(16) std::conditional_t<kConverts, ArrivingFloats<kDim>, NothingArrives> arriving;
};

/// Converts a strip and gives the power of two that it was divided by.
template <int kParts, int kPieces, int kRows, int kStride>
__device__ inline float convert_strip(const float4 (&from)[kPieces][32], __half (&to)[kParts][kRows][kStride],
                                      int strip, int lane) {
  constexpr bool kHolds = kPieces <= 8;  // more would not fit in registers, and is read twice
  float4 held[kHolds ? kPieces : 1];
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const float4 v = from[i][lane];
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    if constexpr (kHolds) held[i] = v;
  }
  const float scale = scale_for(max_lanes(largest)), inverse = inverse_of_scale(scale);
  const int row = lane / 2, col = 8 * strip + lane % 2 * 4;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const float4 v = kHolds ? held[kHolds ? i : 0] : from[i][lane];
    uint32_t left[kParts], right[kParts];
    split(v.x * inverse, v.y * inverse, left);
    split(v.z * inverse, v.w * inverse, right);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      *reinterpret_cast<uint2*>(&to[part][16 * i + row][col]) = make_uint2(left[part], right[part]);
    }
  }
  return scale;
}

}  // namespace hxq::cuda
