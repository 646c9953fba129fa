// What the compiler's vector extension does not express, for AVX-512.

#pragma once

#define HXQ_LANES 16

#include <immintrin.h>

#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(_bzhi_u32(0xffffu, static_cast<unsigned>(n))); }

/// The first n < kLanes floats; the others are 0.
inline VecF load_first(const void* from, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), from); }

inline void store_first(float* to, VecF v, int64_t n) { _mm512_mask_storeu_ps(to, first_lanes(n), v); }

inline VecF smaller(VecF a, VecF b) { return _mm512_min_ps(b, a); }  // a when a is NaN
inline VecF larger(VecF a, VecF b) { return _mm512_max_ps(b, a); }   // a when a is NaN

/// Opaque to the compiler, which would otherwise read a value that is used several times from memory each time.
template <class Vector>
HXQ_ALWAYS_INLINE void keep_in_register(Vector& v) {
  asm("" : "+v"(v));
}

/// sum_lanes of each of four vectors, to the last bit.
inline Vec4 sum_lanes_of_4(VecF a, VecF b, VecF c, VecF d) {
  const VecF ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);  // eight lanes of each
  const VecF cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xee);
  const VecF four = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);  // a, b, c, d
  const VecF two = four + _mm512_permute_ps(four, 0xee);
  const VecF one = two + _mm512_permute_ps(two, 0x55);
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one));
}

/// The sums of the lanes of each of kLanes vectors, as sum_lanes_of_4.
inline VecF sum_lanes_of_all(const VecF (&v)[HXQ_LANES]) {
  const __m128 a = sum_lanes_of_4(v[0], v[1], v[2], v[3]), b = sum_lanes_of_4(v[4], v[5], v[6], v[7]);
  const __m128 c = sum_lanes_of_4(v[8], v[9], v[10], v[11]), d = sum_lanes_of_4(v[12], v[13], v[14], v[15]);
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_set_m128(b, a)), _mm256_set_m128(d, c), 1);
}

/// v * 2^n for whole n, rounded once.
inline VecF scale_by_power(VecF v, VecF n) { return _mm512_scalef_ps(v, n); }

/// kLanes binary16 numbers, widened.
inline VecF load_f16(const void* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}

/// The same, narrowed, rounded to nearest even.
inline void store_f16(void* to, VecF v) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/// table[index[i]] for kLanes bytes.
inline VecF look_up_lanes(const float* table, const uint8_t* index) {
  return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(index))), table, 4);
}

}  // namespace
}  // namespace hxq::kernels::cpu
