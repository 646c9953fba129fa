// What the compiler's vector extension does not express, for AVX2 with F16C.

#pragma once

#define HXQ_LANES 8

#include <immintrin.h>

#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/// The first n < kLanes floats; the others are 0.
inline VecF load_first(const void* from, int64_t n) {
  return _mm256_maskload_ps(static_cast<const float*>(from), first_lanes(n));
}

inline void store_first(float* to, VecF v, int64_t n) { _mm256_maskstore_ps(to, first_lanes(n), v); }

inline VecF smaller(VecF a, VecF b) { return _mm256_min_ps(b, a); }  // a when a is NaN
inline VecF larger(VecF a, VecF b) { return _mm256_max_ps(b, a); }   // a when a is NaN

/// Opaque to the compiler, which would otherwise read a value that is used several times from memory each time.
template <class Vector>
HXQ_ALWAYS_INLINE void keep_in_register(Vector& v) {
  asm("" : "+v"(v));
}

/// sum_lanes of each of four vectors, to the last bit.
inline Vec4 sum_lanes_of_4(VecF a, VecF b, VecF c, VecF d) {
  const VecF ab = _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);  // four lanes of each
  const VecF cd = _mm256_permute2f128_ps(c, d, 0x20) + _mm256_permute2f128_ps(c, d, 0x31);
  const VecF two = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);  // of a and c, of b and d
  const VecF one = _mm256_shuffle_ps(two, two, 0x88) + _mm256_shuffle_ps(two, two, 0xdd);
  return _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1));
}

/// The sums of the lanes of each of kLanes vectors, as sum_lanes_of_4.
inline VecF sum_lanes_of_all(const VecF (&v)[HXQ_LANES]) {
  const __m128 a = sum_lanes_of_4(v[0], v[1], v[2], v[3]), b = sum_lanes_of_4(v[4], v[5], v[6], v[7]);
  return _mm256_set_m128(b, a);
}

/// v * 2^n for whole n in [-252, 254], rounded once: two factors, so that each is a normal number.
inline VecF scale_by_power(VecF v, VecF n) {
  const VecI power = __builtin_convertvector(n, VecI);
  const VecI half = power >> 1;
  return v * from_bits((half + 127) << 23) * from_bits((power - half + 127) << 23);
}

/// kLanes binary16 numbers, widened.
inline VecF load_f16(const void* from) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from))); }

/// The same, narrowed, rounded to nearest even.
inline void store_f16(void* to, VecF v) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/// table[index[i]] for kLanes bytes. A load for each: faster than a gather on every processor where that is microcode
/// (AMD's, and Intel's since the fix for Downfall).
inline VecF look_up_lanes(const float* table, const uint8_t* index) {
  uint64_t all;
  __builtin_memcpy(&all, index, sizeof all);
  const auto entry = [&](int i) { return _mm256_broadcast_ss(table + (all >> (8 * i) & 0xff)); };
  VecF v = entry(0);
  v = _mm256_blend_ps(v, entry(1), 1 << 1);
  v = _mm256_blend_ps(v, entry(2), 1 << 2);
  v = _mm256_blend_ps(v, entry(3), 1 << 3);
  v = _mm256_blend_ps(v, entry(4), 1 << 4);
  v = _mm256_blend_ps(v, entry(5), 1 << 5);
  v = _mm256_blend_ps(v, entry(6), 1 << 6);
  return _mm256_blend_ps(v, entry(7), 1 << 7);
}

}  // namespace
}  // namespace hxq::kernels::cpu
