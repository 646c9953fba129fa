// Weights of grouped matrices as 16-bit integers (see GroupedView) on AVX-512 VBMI, 64 columns at once: packed indices
// are spread to bytes, levels come out of tables in registers, and each is multiplied by its group's scale.

#pragma once

#include "kernels/cpu/table_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Group sizes whose scales are known by the place in a block: a power of two, at least the 16 columns of 128 bits.
inline bool has_integer_groups(const GroupedView& weight) {
  return weight.group >= 16 && (weight.group & (weight.group - 1)) == 0;
}

/// Where the bits of 64 packed indices of kBits are: byte i of the result is to be `shift[i]` bits into the eight bytes
/// `byte[i / 8 * 8 ..]` of the source, where the upper bits of it belong to other indices.
///
/// Levels of up to 6 bits are looked up 16 bits at a time, in the even bytes and then in the odd ones. So that they
/// come out in the order of QuantizedBlock, the even bytes are the first eight of every sixteen columns.
template <int kBits>
struct Spread {
  alignas(64) uint8_t byte[64];
  alignas(64) uint8_t shift[64];

  constexpr Spread() : byte(), shift() {
    for (int qword = 0; qword < 8; ++qword) {
      for (int i = 0; i < 8; ++i) {
        const int at = 8 * qword + i;
        if (kBits > 6) {
          byte[at] = static_cast<uint8_t>(kBits * qword + i < 64 ? kBits * qword + i : 63);
          shift[at] = static_cast<uint8_t>(kBits * i);
          continue;
        }
        const int even = kBits * (qword / 2 * 16 + qword % 2 * 4), odd = even + kBits * 8;  // first bits
        byte[at] = static_cast<uint8_t>(i < 4 ? even / 8 + i : odd / 8 + i - 4);
        shift[at] = static_cast<uint8_t>(kBits * (i / 2) + (i % 2 == 0 ? even % 8 : odd % 8 + 32));
      }
    }
  }
};

template <int kBits>
constexpr Spread<kBits> kSpread = {};

/// Levels of up to 64 columns, in the order of QuantizedBlock.
template <int kBits>
struct GroupedTable {
  static constexpr bool kWords = kBits <= 6;

  __m512i byte, shift, part0, part1, part2, part3;
  ByteTable low, high;  // 8 bits

  HXQ_ALWAYS_INLINE explicit GroupedTable(const GroupedView& weight)
      : byte(_mm512_load_si512(kSpread<kBits>.byte)),
        shift(_mm512_load_si512(kSpread<kBits>.shift)),
        part0(ByteTable::in_register(kWords ? words(weight) : weight.level_planes)),
        part1(ByteTable::in_register(kWords ? words(weight) + 64 : weight.level_planes + 64)),
        part2(ByteTable::in_register(weight.level_planes + 256)),
        part3(ByteTable::in_register(weight.level_planes + 256 + 64)),
        low(weight.level_planes),
        high(weight.level_planes + 256) {}

  static const uint8_t* words(const GroupedView& weight) {
    return reinterpret_cast<const uint8_t*>(weight.level_words);
  }

  /// Indices as bytes, in the order of columns that `look_up` takes.
  HXQ_ALWAYS_INLINE __m512i spread(__m512i packed) const {
    if (kBits == 8) return packed;
    return _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(byte, packed));
  }

  HXQ_ALWAYS_INLINE Levels64 look_up(__m512i index) const {
    if constexpr (kBits == 8) {
      const Indices both = indices_of(index);
      return interleaved(low.look_up<false>(both, 0), high.look_up<false>(both, 0));
    } else if constexpr (kBits == 7) {
      return interleaved(_mm512_permutex2var_epi8(part0, index, part1), _mm512_permutex2var_epi8(part2, index, part3));
    } else if constexpr (kBits == 6) {
      return {{_mm512_permutex2var_epi16(part0, index, part1),
               _mm512_permutex2var_epi16(part0, _mm512_srli_epi16(index, 8), part1)}};
    } else {
      return {{_mm512_permutexvar_epi16(index, part0), _mm512_permutexvar_epi16(_mm512_srli_epi16(index, 8), part0)}};
    }
  }

 private:
  HXQ_ALWAYS_INLINE static Levels64 interleaved(__m512i low_bytes, __m512i high_bytes) {
    return {{_mm512_unpacklo_epi8(low_bytes, high_bytes), _mm512_unpackhi_epi8(low_bytes, high_bytes)}};
  }
};

/// Packed indices of up to 64 columns, 0 past the last.
template <int kBits>
HXQ_ALWAYS_INLINE __m512i load_packed(const uint8_t* from, int64_t cols) {
  constexpr __mmask64 kWhole = kBits == 8 ? ~__mmask64{0} : (__mmask64{1} << kBits * 8 % 64) - 1;
  return _mm512_maskz_loadu_epi8(cols >= kBlock ? kWhole : first_bytes((cols * kBits + 7) / 8), from);
}

/// Bytes ahead of its reading that a stream of scales is asked for: some rows, since no loop waits for one.
constexpr int64_t kScalePrefetch = 256;

/// Scales of groups as whole numbers, each twice in 32 bits, of four rows that are multiplied together: four groups of
/// the first, of the second and so on, then the next four.
constexpr int64_t kScalesAtOnce = 4;

/// Whole 64 groups are written, and 16 bytes may be read from every group on.
inline int64_t scale_words(const GroupedView& weight) { return blocks_of(weight.groups) * kBlock * 4 + 16; }

/// Calls `put(first group, scales)` for each kLanes of a row's groups, whole blocks of them.
template <class Put>
HXQ_ALWAYS_INLINE void for_scales(const GroupedView& weight, int64_t row, const Put& put) {
  const FloatTable table(weight.scale_planes);
  const uint8_t* code = weight.scales + row * weight.groups;
  for (int64_t g = 0; g < weight.groups; g += kBlock) {
    _mm_prefetch(reinterpret_cast<const char*>(code + g) + kScalePrefetch, _MM_HINT_T0);
    const __m512i codes = load_indices(code + g, weight.groups - g);
    const Weights found = table.look_up<false>(FloatTable::in_order(codes), 0);
    put(g, found.part0);
    put(g + kLanes, found.part1);
    put(g + 2 * kLanes, found.part2);
    put(g + 3 * kLanes, found.part3);
  }
}

/// `scale`: kScalesAtOnce words further for each of the four rows.
__attribute__((noinline)) void find_scales(const GroupedView& weight, int64_t row, uint32_t* scale) {
  const VecF inverse = splat(weight.row[row].inverse);
  for_scales(
      weight, row, [&](int64_t first, VecF scales) __attribute__((always_inline)) {
        const __m512i whole = _mm512_cvtps_epi32(scales * inverse);
        const __m512i twice = _mm512_mask_blend_epi16(0xaaaaaaaa, whole, _mm512_slli_epi32(whole, 16));
        auto* to = reinterpret_cast<__m128i*>(scale + 4 * first);
        _mm_storeu_si128(to, _mm512_castsi512_si128(twice));
        _mm_storeu_si128(to + 4, _mm512_extracti32x4_epi32(twice, 1));
        _mm_storeu_si128(to + 8, _mm512_extracti32x4_epi32(twice, 2));
        _mm_storeu_si128(to + 12, _mm512_extracti32x4_epi32(twice, 3));
      });
}

/// The scales of a block's columns in the order of QuantizedBlock, the same for both halves. kWide: of one group.
template <bool kWide>
struct BlockScales {
  int64_t log_group;
  __m512i lanes = {};

  HXQ_ALWAYS_INLINE explicit BlockScales(const GroupedView& weight) : log_group(__builtin_ctzll(weight.group)) {
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);  // of 128 bits
    if (!kWide) lanes = _mm512_srli_epi32(lane, static_cast<unsigned>(log_group - 4));
  }

  /// Where the scale of a block's first group is.
  HXQ_ALWAYS_INLINE int64_t place_of(int64_t col) const {
    const int64_t group = col >> log_group;
    return (group & ~int64_t{3}) * 4 + (group & 3);
  }

  HXQ_ALWAYS_INLINE __m512i of_block(const uint32_t* scale) const {
    if (kWide) return _mm512_set1_epi32(static_cast<int>(*scale));
    const __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scale)));
    return _mm512_permutexvar_epi32(lanes, four);
  }
};

HXQ_ALWAYS_INLINE Levels64 scaled(const Levels64& level, __m512i scale) {
  return {{_mm512_mulhrs_epi16(level.half[0], scale), _mm512_mulhrs_epi16(level.half[1], scale)}};
}

/// Calls `run.template operator()<bits, kWide>()` for the matrix.
template <class Run>
void with_grouped_form(const GroupedView& weight, Run run) {
  const auto by_bits = [&]<bool kWide>() {
    switch (weight.bits) {
      case 3:
        return run.template operator()<3, kWide>();
      case 4:
        return run.template operator()<4, kWide>();
      case 5:
        return run.template operator()<5, kWide>();
      case 6:
        return run.template operator()<6, kWide>();
      case 7:
        return run.template operator()<7, kWide>();
      default:
        return run.template operator()<8, kWide>();
    }
  };
  weight.group >= kBlock ? by_bits.template operator()<true>() : by_bits.template operator()<false>();
}

}  // namespace
}  // namespace hxq::kernels::cpu
