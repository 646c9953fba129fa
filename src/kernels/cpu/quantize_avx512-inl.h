// The parts of quantize-inl.h that AVX-512 does in its own way.

#pragma once

#include "kernels/cpu/vec_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Magnitudes are ordered as their bits, infinities and NaN above all others.
inline VecF larger_magnitude(VecF largest, VecF v) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(largest), _mm512_castps_si512(_mm512_abs_ps(v))));
}

inline float largest_lane(VecF magnitudes) {
  return __builtin_bit_cast(float, _mm512_reduce_max_epu32(_mm512_castps_si512(magnitudes)));
}

/// 32 columns, rounded, in order.
inline __m512i round_columns(VecF first, VecF second) {
  alignas(64) static constexpr int16_t kLower[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                     32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  return _mm512_permutex2var_epi16(_mm512_cvtps_epi32(first), _mm512_load_si512(kLower), _mm512_cvtps_epi32(second));
}

/// `sum`, and in every lane of 32 bits the products of its pair of 16-bit numbers.
HXQ_ALWAYS_INLINE __m512i add_pair_products(__m512i sum, __m512i a, __m512i b) {
  return _mm512_dpwssd_epi32(sum, a, b);
}

}  // namespace
}  // namespace hxq::kernels::cpu
