// Looking up 64 bytes at once: a table of 256 bytes lies in four registers, vpermi2b finds 64 entries in two of them.

#pragma once

#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/quantize-inl.h"
#include "kernels/cpu/quantize_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// 64 indices and the mask that chooses between two tables of 128 bytes. vpermi2b ignores the upper bit.
struct Indices {
  __m512i value;
  __mmask64 bit7;
};

HXQ_ALWAYS_INLINE Indices indices_of(__m512i value) { return {value, _mm512_movepi8_mask(value)}; }

/// The first of 64 bytes; all from 64 columns on.
HXQ_ALWAYS_INLINE __mmask64 first_bytes(int64_t cols) {
  return cols >= kBlock ? ~__mmask64{0} : _bzhi_u64(~0ull, static_cast<unsigned>(cols));
}

/// Indices of up to 64 columns, 0 past the last.
HXQ_ALWAYS_INLINE __m512i load_indices(const uint8_t* index, int64_t cols) {
  return cols >= kBlock ? _mm512_loadu_si512(index) : _mm512_maskz_loadu_epi8(first_bytes(cols), index);
}

/// One byte of every level.
struct ByteTable {
  __m512i part0, part1, part2, part3;

  HXQ_ALWAYS_INLINE explicit ByteTable(const uint8_t* bytes)
      : part0(in_register(bytes)),
        part1(in_register(bytes + 64)),
        part2(in_register(bytes + 128)),
        part3(in_register(bytes + 192)) {}

  /// Opaque to the compiler, which would otherwise read the tables from memory in the inner loop.
  HXQ_ALWAYS_INLINE static __m512i in_register(const uint8_t* bytes) {
    __m512i value = _mm512_loadu_si512(bytes);
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

}  // namespace
}  // namespace hxq::kernels::cpu
