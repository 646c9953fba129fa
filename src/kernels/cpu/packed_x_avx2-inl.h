// Decode rows of x for kernels of integers on AVX2: rounded to 13 bits (kDecodeQuantization), in an order that is the
// kernel's.

#pragma once

#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/quantize-inl.h"
#include "kernels/cpu/quantize_avx2-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// As kPrefetch, with two streams of rows (gemv_rows).
constexpr int64_t kStreamPrefetch = 1024;

/// Packed x of one token: this, then a part for every 256 columns, which has their scale and what the kernel puts
/// there.
struct alignas(32) PackedHead {
  float exponent;  ///< sums are multiplied by 2 to this: scales alone might be out of float's range
};

inline int64_t parts_of(int64_t cols) { return (cols + kDecodeQuantization.block - 1) / kDecodeQuantization.block; }

template <class Part>
int64_t packed_floats(int64_t cols) {
  const int64_t bytes = static_cast<int64_t>(sizeof(PackedHead)) + parts_of(cols) * static_cast<int64_t>(sizeof(Part));
  return (bytes + 63) / 64 * 16;
}

template <class Part>
Part* first_part(float* packed_x) {
  return reinterpret_cast<Part*>(packed_x + sizeof(PackedHead) / sizeof(float));
}
template <class Part>
const Part* first_part(const float* packed_x) {
  return reinterpret_cast<const Part*>(packed_x + sizeof(PackedHead) / sizeof(float));
}

inline float largest_magnitude(const float* x, int64_t n) {
  VecF largest = {};
  for (int64_t i = 0; i < n; i += kLanes) largest = larger_magnitude(largest, columns_of(x + i, n - i));
  return largest_lane(largest);
}

/// The exponent of a number, -127 for 0 and those below the normal ones.
inline int32_t exponent_of(float v) { return (__builtin_bit_cast(int32_t, v) >> 23 & 0xff) - 127; }

/// Writes head and scales, and calls `put(whole, part)` with 256 whole numbers, zeros past the last column. `unit`: a
/// power of two that products are in units of.
template <class Part, class Put>
void round_x(const float* x, int64_t cols, float unit, float* packed_x, Put put) {
  const float most = largest_magnitude(x, cols);
  const int32_t exponent = most <= __FLT_MAX__ ? exponent_of(most) : 0;
  const int32_t all = exponent + exponent_of(unit);
  reinterpret_cast<PackedHead*>(packed_x)->exponent = static_cast<float>(all < -252 ? -252 : all);
  const VecF down = splat(static_cast<float>(-exponent));
  Part* part = first_part<Part>(packed_x);
  for (int64_t first = 0; first < cols; first += kDecodeQuantization.block, ++part) {
    const int64_t n = cols - first < kDecodeQuantization.block ? cols - first : kDecodeQuantization.block;
    const BlockScale by(kDecodeQuantization, scale_by_power(splat(largest_magnitude(x + first, n)), down)[0]);
    part->scale = by.scale;
    alignas(32) int32_t whole[kDecodeQuantization.block] = {};
    for (int64_t i = 0; i < n && by.inverse > 0; i += kLanes) {
      const VecF v = scale_by_power(columns_of(x + first + i, n - i), down) * by.inverse;
      _mm256_store_si256(reinterpret_cast<__m256i*>(whole + i), _mm256_cvtps_epi32(v));
    }
    put(whole, part);
  }
}

/// Columns of a WordBlock, and blocks that share a scale of x.
constexpr int64_t kWordBlock = 32;
constexpr int64_t kWordBlocks = kDecodeQuantization.block / kWordBlock;

/// 32 whole numbers of 16 bits, in the order in which two planes of bytes are interleaved within 128 bits: `first` has
/// the first eight of every sixteen, `second` the others.
struct alignas(32) WordBlock {
  int16_t first[16], second[16];
};

struct alignas(32) WordXPart {
  WordBlock block[kWordBlocks];
  float scale;
};

inline void pack_word_x(const float* x, int64_t cols, float unit, float* packed_x) {
  round_x<WordXPart>(x, cols, unit, packed_x, [&](const int32_t* whole, WordXPart* part) {
    for (WordBlock& block : part->block) {
      const auto at = [&](int64_t i) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(whole + 8 * i)); };
      // Packing takes four numbers of either in turn, so that eight adjacent ones are to be put together first.
      const auto put = [&](__m256i a, __m256i b, int16_t* to) {
        const __m256i packed = _mm256_packs_epi32(a, b);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
      };
      put(at(0), at(2), block.first);
      put(at(1), at(3), block.second);
      whole += kWordBlock;
    }
  });
}

/// Levels of 32 columns, as WordBlock has them.
struct WordLevels {
  __m256i first, second;

  /// Of planes of their lower and upper bytes.
  HXQ_ALWAYS_INLINE static WordLevels of_planes(__m256i low, __m256i high) {
    return {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
  }

  HXQ_ALWAYS_INLINE static WordLevels load(const WordBlock& from) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(from.first)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(from.second))};
  }

  HXQ_ALWAYS_INLINE void store(WordBlock& to) const {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to.first), first);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to.second), second);
  }
};

/// y of rows from the sums of the products with a token's whole numbers.
inline VecF finish_sums(const float* packed_x, VecF sums) {
  const float exponent = reinterpret_cast<const PackedHead*>(packed_x)->exponent;
  VecF scaled = scale_by_power(sums, splat(exponent));
  keep_in_register(scaled);  // or what is added later would be fused with it, or not, depending on the caller
  return scaled;
}
inline Vec4 finish_sums(const float* packed_x, Vec4 sums) {
  return _mm256_castps256_ps128(finish_sums(packed_x, VecF(_mm256_castps128_ps256(sums))));
}

}  // namespace
}  // namespace hxq::kernels::cpu
