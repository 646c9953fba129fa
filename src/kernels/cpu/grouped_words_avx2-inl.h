// Decode rows times a grouped matrix of 32 or 64 levels that are whole numbers of 16 bits (GroupedView::whole_levels),
// on AVX2: vpshufb finds 16 of them at a time, a plane of bytes each, and vpmaddwd multiplies them with x, rounded to
// 13 bits. Weights are exact, and so are the sums of a lane: 4 * 32767 * 4095 < 2^31.

#pragma once

#include "kernels/cpu/grouped_bytes_avx2-inl.h"

namespace hxq::kernels::cpu {
namespace {

void pack_grouped_word_x(const GroupedView& weight, const float* x, float* packed_x) {
  pack_word_x(x, weight.cols, weight.scale_unit, packed_x);
}

/// How indices of up to 32 columns become bytes. A pair of columns is within two bytes of the packed ones, which make a
/// word; multiplications put the bits of the even and the odd column at its upper end.
template <int kBits>
struct SpreadWords {
  /// The upper 16 columns are loaded from here on, so that nothing is read past the block.
  static constexpr int kUpper = 4 * kBits - 16;
  alignas(32) int8_t byte[32];
  alignas(32) int16_t even[16], odd[16];

  constexpr SpreadWords() : byte(), even(), odd() {
    for (int i = 0; i < 16; ++i) {
      const int bit = i % 8 * 2 * kBits, first = bit / 8 + (i / 8) * (2 * kBits - kUpper);
      byte[2 * i] = static_cast<int8_t>(first);
      byte[2 * i + 1] = static_cast<int8_t>(first + 1);
      even[i] = static_cast<int16_t>(1 << (16 - kBits - bit % 8));
      odd[i] = static_cast<int16_t>(1 << (16 - 2 * kBits - bit % 8));
    }
  }

  HXQ_ALWAYS_INLINE __m256i bytes(const uint8_t* from) const {
    const auto load = [](const void* at) __attribute__((always_inline)) {
      return _mm256_load_si256(static_cast<const __m256i*>(at));
    };
    const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + kUpper));
    const __m256i pairs = _mm256_shuffle_epi8(_mm256_set_m128i(upper, lower), load(byte));
    const __m256i first = _mm256_srli_epi16(_mm256_mullo_epi16(pairs, load(even)), 16 - kBits);
    const __m256i second = _mm256_srli_epi16(_mm256_mullo_epi16(pairs, load(odd)), 8 - kBits);
    return _mm256_or_si256(first, _mm256_and_si256(second, _mm256_set1_epi16(static_cast<int16_t>(0xff00))));
  }
};

template <int kBits>
constexpr SpreadWords<kBits> kSpreadWords = {};

HXQ_ALWAYS_INLINE VecF lane_products(const WordLevels& level, const WordBlock& x) {
  const WordLevels by = WordLevels::load(x);
  return _mm256_cvtepi32_ps(
      _mm256_add_epi32(_mm256_madd_epi16(level.first, by.first), _mm256_madd_epi16(level.second, by.second)));
}

/// A form of grouped_gemv_avx2-inl.h. vpshufb gives 0 where the uppermost bit of an index is set: the table that an
/// index chooses, of 16 levels each, is the exclusive or of those looked up where bits 4 and 5 are clear, both of them
/// or one.
template <int kBits>
struct WordForm {
  using Part = WordXPart;
  using Levels = WordLevels;
  static constexpr int64_t kColumns = kWordBlock, kBytes = kWordBlock / 8 * kBits;
  static constexpr auto pack_x = pack_grouped_word_x;
  static constexpr const int (&kLanes)[8] = lane_order(kBits);
  static constexpr int kTables = 1 << (kBits - 4);
  __m256i low[kTables], high[kTables];

  HXQ_ALWAYS_INLINE explicit WordForm(const GroupedView& weight) {
    const auto* from = reinterpret_cast<const __m128i*>(weight.whole_levels);
    for (int i = kTables - 1; i >= 0; --i, from += 2) {
      const __m128i a = _mm_load_si128(from), b = _mm_load_si128(from + 1), byte = _mm_set1_epi16(255);
      low[i] = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(a, byte), _mm_and_si128(b, byte)));
      high[i] = _mm256_broadcastsi128_si256(_mm_packs_epi16(_mm_srai_epi16(a, 8), _mm_srai_epi16(b, 8)));
    }
    for (auto* plane : {low, high}) {  // from the last table to the first, now
      if constexpr (kTables == 4) plane[3] ^= plane[0] ^ plane[1] ^ plane[2];
      for (int i = 1; i < (kTables == 4 ? 3 : 2); ++i) plane[i] ^= plane[0];
    }
  }

  HXQ_ALWAYS_INLINE WordLevels look_up(const uint8_t* from, int64_t cols) const {
    if (cols < kColumns) return look_up(PaddedBytes<32>(from, (cols * kBits + 7) / 8).bytes, kColumns);
    const __m256i index = kSpreadWords<kBits>.bytes(from);
    const auto where_clear = [&](int bits, int add) __attribute__((always_inline)) {
      const __m256i chosen = _mm256_and_si256(index, _mm256_set1_epi8(static_cast<char>(15 | bits)));
      return _mm256_add_epi8(chosen, _mm256_set1_epi8(static_cast<char>(add)));
    };
    const auto find = [](__m256i table, __m256i at) __attribute__((always_inline)) {
      return _mm256_shuffle_epi8(table, at);
    };
    __m256i low_bytes = find(low[0], index), high_bytes = find(high[0], index);
    const auto change = [&](int i, __m256i at) __attribute__((always_inline)) {
      low_bytes ^= find(low[i], at);
      high_bytes ^= find(high[i], at);
    };
    change(1, where_clear(16, 0x70));
    if constexpr (kTables == 4) {
      change(2, where_clear(32, 0x60));
      change(3, _mm256_add_epi8(index, _mm256_set1_epi8(0x70)));
    }
    return WordLevels::of_planes(low_bytes, high_bytes);
  }
};

}  // namespace
}  // namespace hxq::kernels::cpu
