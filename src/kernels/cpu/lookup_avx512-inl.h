// Looking up 64 bytes at once: a table of 256 bytes lies in four registers, vpermi2b finds 64 entries in two of them.

#pragma once

#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/vec_avx512-inl.h"

// The compiler keeps tables and sums in registers only if everything is one function early on.
#define HXQ_ALWAYS_INLINE __attribute__((always_inline)) inline

namespace hxq::kernels::cpu {
namespace {

/// Columns that a table is asked for at once.
constexpr int64_t kBlock = 64;

inline int64_t blocks_of(int64_t cols) { return (cols + kBlock - 1) / kBlock; }

/// 64 indices and the mask that chooses between two tables of 128 bytes. vpermi2b ignores the upper bit.
struct Indices {
  __m512i value;
  __mmask64 bit7;
};

HXQ_ALWAYS_INLINE Indices indices_of(__m512i value) { return {value, _mm512_movepi8_mask(value)}; }

/// One byte of every codeword.
struct ByteTable {
  __m512i part0, part1, part2, part3;

  HXQ_ALWAYS_INLINE explicit ByteTable(const uint8_t* bytes)
      : part0(in_register(bytes)),
        part1(in_register(bytes + 64)),
        part2(in_register(bytes + 128)),
        part3(in_register(bytes + 192)) {}

  /// Opaque to the compiler, which would otherwise read the tables from memory in the inner loop.
  HXQ_ALWAYS_INLINE static __m512i in_register(const uint8_t* bytes) {
    __m512i value = _mm512_load_si512(bytes);
    asm volatile("" : "+v"(value));
    return value;
  }

  template <bool kMasked>
  HXQ_ALWAYS_INLINE __m512i look_up(const Indices& index, __mmask64 keep) const {
    const __m512i lower = _mm512_permutex2var_epi8(part0, index.value, part1);
    const __m512i upper = _mm512_permutex2var_epi8(part2, index.value, part3);
    const __m512i found = _mm512_mask_blend_epi8(index.bit7, lower, upper);
    return kMasked ? _mm512_maskz_mov_epi8(keep, found) : found;
  }
};

/// Lane sums of four vectors. The order of additions is the same in all four.
inline __m128 sum_lanes_of_4(VecF a, VecF b, VecF c, VecF d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 four = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

}  // namespace
}  // namespace hxq::kernels::cpu
