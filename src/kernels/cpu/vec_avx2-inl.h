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

/// kLanes binary16 numbers, widened.
inline VecF load_f16(const void* from) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from))); }

/// The same, narrowed, rounded to nearest even.
inline void store_f16(void* to, VecF v) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace
}  // namespace hxq::kernels::cpu
