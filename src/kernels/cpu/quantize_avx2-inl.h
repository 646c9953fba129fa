// The parts of quantize-inl.h that AVX2 does in its own way.

#pragma once

#include "kernels/cpu/vec_avx2-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Magnitudes are ordered as their bits, infinities and NaN above all others.
inline VecF larger_magnitude(VecF largest, VecF v) {
  const VecI a = bits_of(largest), b = bits_of(v) & 0x7fffffff;
  return from_bits(b > a ? b : a);
}

inline float largest_lane(VecF magnitudes) {
  int32_t most = 0;
  for (int64_t i = 0; i < kLanes; ++i) most = bits_of(magnitudes)[i] > most ? bits_of(magnitudes)[i] : most;
  return __builtin_bit_cast(float, most);
}

/// 16 columns, rounded, in order.
inline __m256i round_columns(VecF first, VecF second) {
  const __m256i halves = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
  return _mm256_permute4x64_epi64(halves, 0xd8);
}

/// `sum`, and in every lane of 32 bits the products of its pair of 16-bit numbers.
HXQ_ALWAYS_INLINE __m256i add_pair_products(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

}  // namespace
}  // namespace hxq::kernels::cpu
