// Weights of grouped matrices as 16-bit integers (see GroupedView) on AVX-512 VBMI, 64 columns at once: packed indices
// are spread to bytes, levels come out of tables in registers, and each is multiplied by its group's scale.

#pragma once

#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/table_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

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
template <int kIndexBits>
struct GroupedTable {
  static constexpr int kBits = kIndexBits;
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

/// The same where 256 levels are the indices less 128: as the upper bytes of words they are the levels times 256, which
/// GroupedView::level_words are.
struct UniformTable {
  static constexpr int kBits = 8;

  HXQ_ALWAYS_INLINE explicit UniformTable(const GroupedView&) {}

  HXQ_ALWAYS_INLINE __m512i spread(__m512i packed) const { return _mm512_xor_si512(packed, _mm512_set1_epi8(-128)); }

  HXQ_ALWAYS_INLINE Levels64 look_up(__m512i level) const {
    return {{_mm512_unpacklo_epi8(__m512i{}, level), _mm512_unpackhi_epi8(__m512i{}, level)}};
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

/// Scales are looked up where they are multiplied. Four and more of them are put together in half a vector, which takes
/// half the time on cores that do a whole one in two steps.
template <int kGroups>
struct BlockGroups : GroupCodes<kGroups> {
  using GroupCodes<kGroups>::GroupCodes;

  /// A number of 32 bits for each lane, lanes being as many columns, from `table` [256].
  HXQ_ALWAYS_INLINE static VecF look_up(const void* table, const uint8_t* code) {
    const auto number = [&](int g) {
      float value;
      __builtin_memcpy(&value, static_cast<const float*>(table) + code[g], sizeof value);
      return value;
    };
    if constexpr (kGroups >= 4) {
      __m256 each = _mm256_set1_ps(number(0));
#pragma GCC unroll 8
      for (int g = 1; g < kGroups; ++g) {
        each = _mm256_mask_broadcastss_ps(each, static_cast<__mmask8>(1 << g), _mm_set_ss(number(g)));
      }
      const VecI lane = VecI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} / (HXQ_LANES / kGroups);
      return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(lane), _mm512_castps256_ps512(each));
    }
    VecF found = splat(number(0));
#pragma GCC unroll 8
    for (int g = 1; g < kGroups; ++g) {
      constexpr int kEach = kLanes / kGroups;
      const auto lanes = static_cast<__mmask16>(((1 << kEach) - 1) << g * kEach);
      found = _mm512_mask_broadcastss_ps(found, lanes, _mm_set_ss(number(g)));
    }
    return found;
  }
};

/// The same place in a row of each of several streams. One distance serves all: a pointer to each would take more
/// registers than there are.
struct StreamBytes {
  const uint8_t* first;
  int64_t apart;

  HXQ_ALWAYS_INLINE const uint8_t* operator[](int64_t i) const { return first + i * apart; }
};

/// Goes through row `row` and kRows - 1 more, `apart` rows from each other, in blocks of kColumns columns, indices of
/// kBits and kGroups groups: calls `add(packed, code, cols)` for each block with its indices, the codes of its groups
/// and `cols` columns or, if there are more, kColumns; and `finish()` after all that share a scale of x.
template <int kBits, int kColumns, int kGroups, int kRows, class Add, class Finish>
HXQ_ALWAYS_INLINE void for_blocks(const GroupedView& weight, int64_t row, int64_t apart, const Add& add,
                                  const Finish& finish) {
  constexpr int64_t kBytes = kColumns / 8 * kBits;
  const BlockGroups<kGroups> groups(weight);
  StreamBytes packed{weight.packed + row * weight.row_bytes, apart * weight.row_bytes};
  const StreamBytes codes{weight.scales + row * weight.groups, apart * weight.groups};
  for (int64_t col = 0; col < weight.cols; finish()) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(codes[i] + groups.group_of(col)) + kScalePrefetch, _MM_HINT_T0);
    }
    if (weight.cols - col >= kDecodeQuantization.block) {
#pragma GCC unroll 4
      for (int64_t b = 0; b < kDecodeQuantization.block / kColumns; ++b, col += kColumns, packed.first += kBytes) {
        add(packed, {codes.first + groups.group_of(col), codes.apart}, kColumns);
      }
    } else {
      uint8_t rest[kRows][kGroups];
      for (; col < weight.cols; col += kColumns, packed.first += kBytes) {
        for (int i = 0; i < kRows; ++i) groups.copy_codes(codes[i], col, rest[i]);
        add(packed, {rest[0], kGroups}, weight.cols - col);
      }
    }
  }
}

/// Times the scales of a block, in the order of QuantizedBlock the same for both halves.
HXQ_ALWAYS_INLINE Levels64 scaled(const Levels64& level, VecF scale_words) {
  const __m512i scale = _mm512_castps_si512(scale_words);
  return {{_mm512_mulhrs_epi16(level.half[0], scale), _mm512_mulhrs_epi16(level.half[1], scale)}};
}

/// Calls `run.template operator()<table, groups of a block>()` for the matrix.
template <class Run>
void with_grouped_form(const GroupedView& weight, Run run) {
  const auto by_table = [&]<int kGroups>() {
    switch (weight.bits) {
      case 3:
        return run.template operator()<GroupedTable<3>, kGroups>();
      case 4:
        return run.template operator()<GroupedTable<4>, kGroups>();
      case 5:
        return run.template operator()<GroupedTable<5>, kGroups>();
      case 6:
        return run.template operator()<GroupedTable<6>, kGroups>();
      case 7:
        return run.template operator()<GroupedTable<7>, kGroups>();
      default:
        if (weight.level_bytes) return run.template operator()<UniformTable, kGroups>();
        return run.template operator()<GroupedTable<8>, kGroups>();
    }
  };
  if (weight.group >= kBlock) return by_table.template operator()<1>();
  weight.group == 32 ? by_table.template operator()<2>() : by_table.template operator()<4>();
}

}  // namespace
}  // namespace hxq::kernels::cpu
