// Decode rows times a grouped matrix whose levels are whole numbers of a byte (GroupedView::level_bytes), on AVX2:
// vpshufb looks up to 16 levels up, and indices of 256 of them are the levels already; vpmaddubsw multiplies these with
// the two bytes of x, 128 * high + low. As on AVX-512 (grouped_bytes_avx512-inl.h) x is rounded to 13 bits and weights
// are exact.
//
// Levels are taken plus 128, without a sign, as vpmaddubsw takes them; what that adds is taken off where sums
// begin. Nothing saturates: low is in [-64, 63] and high in [-32, 32], so that two products of the one, 2 * 255 * 64,
// and four of the other, 4 * 255 * 32, fit 16 bits.

#pragma once

#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/packed_x_avx2-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kByteBlock = 64;
constexpr int64_t kByteBlocks = kDecodeQuantization.block / kByteBlock;  // that share a scale of x

/// 64 columns of x. A lane of 32 bits has 8 adjacent columns, four of them in its bytes of `first`, the others in those
/// of `second`: the even and the odd ones, which indices of few bits are packed as, or the first and the last four of
/// byte indices.
struct alignas(32) ByteX {
  int8_t first_high[32], second_high[32], first_low[32], second_low[32];
  int32_t begin[8];  ///< -128 times the sum of the lane's x
};

/// 256 columns, see packed_x_avx2-inl.h.
struct alignas(32) ByteXPart {
  ByteX block[kByteBlocks];
  float scale;
};

/// The columns of a block's lanes, divided by 8. Those of byte indices are where vshufps gets them to.
constexpr int kLaneOrder[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 4, 5, 2, 3, 6, 7}};
constexpr const int (&lane_order(int32_t bits))[8] { return kLaneOrder[bits == 8]; }

/// The low bytes of whole numbers of 8 lanes, 8 columns of each: the first four of every lane to `first`, the others to
/// `second`.
inline void put_bytes(const __m256i (&whole)[8], int8_t* first, int8_t* second) {
  const auto pack = [](const __m256i* v) {
    return _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  };
  const __m256i a = pack(whole), b = pack(whole + 4);
  _mm256_store_si256(reinterpret_cast<__m256i*>(first), _mm256_permute2x128_si256(a, b, 0x20));
  _mm256_store_si256(reinterpret_cast<__m256i*>(second), _mm256_permute2x128_si256(a, b, 0x31));
}

/// Whole numbers of 64 columns, for indices of `bits`.
inline void put_block(const int32_t* whole, int32_t bits, ByteX* to) {
  const int(&order)[8] = lane_order(bits);
  const __m256i even_first = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
  __m256i x[8], high[8], low[8];
  for (int lane = 0; lane < 8; ++lane) {
    x[lane] = _mm256_load_si256(reinterpret_cast<const __m256i*>(whole + 8 * order[lane]));
    if (bits != 8) x[lane] = _mm256_permutevar8x32_epi32(x[lane], even_first);
    high[lane] = _mm256_srai_epi32(_mm256_add_epi32(x[lane], _mm256_set1_epi32(64)), 7);
    low[lane] = _mm256_sub_epi32(x[lane], _mm256_slli_epi32(high[lane], 7));
  }
  put_bytes(high, to->first_high, to->second_high);
  put_bytes(low, to->first_low, to->second_low);
  const auto sum = [](const __m256i* v) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
  };
  const __m256i a = sum(x), b = sum(x + 4);
  const __m256i all = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  const __m256i begin = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(all, 7));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to->begin), begin);
}

void pack_byte_x(const GroupedView& weight, const float* x, float* packed_x) {
  round_x<ByteXPart>(x, weight.cols, weight.scale_unit, packed_x, [&](const int32_t* whole, ByteXPart* part) {
    for (int64_t b = 0; b < kByteBlocks; ++b) put_block(whole + b * kByteBlock, weight.bits, part->block + b);
  });
}

/// Levels of 64 columns, as ByteX has them, plus 128.
struct LevelBytes {
  __m256i first, second;
};

/// `count` bytes from `from` on, and zeros, where fewer than `N` are left.
template <size_t N>
struct PaddedBytes {
  alignas(32) uint8_t bytes[N] = {};

  HXQ_ALWAYS_INLINE PaddedBytes(const uint8_t* from, int64_t count) {
    __builtin_memcpy(bytes, from, static_cast<size_t>(count));
  }
};

/// The sums of a block's lanes.
HXQ_ALWAYS_INLINE VecF lane_products(const LevelBytes& level, const ByteX& x) {
  const auto at = [](const void* bytes) __attribute__((always_inline)) {
    return _mm256_load_si256(static_cast<const __m256i*>(bytes));
  };
  const __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(level.first, at(x.first_high)),
                                        _mm256_maddubs_epi16(level.second, at(x.second_high)));
  const __m256i low_first = _mm256_maddubs_epi16(level.first, at(x.first_low));
  const __m256i low_second = _mm256_maddubs_epi16(level.second, at(x.second_low));
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(low_first, one), _mm256_madd_epi16(low_second, one));
  const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(128)), at(x.begin));
  return _mm256_cvtepi32_ps(_mm256_add_epi32(sum, low));
}

/// Levels that vpshufb finds: a form of grouped_gemv_avx2-inl.h.
template <int kBits>
struct ByteForm {
  using Part = ByteXPart;
  using Levels = LevelBytes;
  static constexpr int64_t kColumns = kByteBlock, kBytes = kByteBlock / 8 * kBits;
  static constexpr auto pack_x = pack_byte_x;
  static constexpr const int (&kLanes)[8] = lane_order(kBits);
  __m256i table;

  HXQ_ALWAYS_INLINE explicit ByteForm(const GroupedView& weight)
      : table(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(weight.level_bytes)))) {}

  /// Bytes of a pair of indices: the lower bits are an even column's, those above them the odd one's.
  HXQ_ALWAYS_INLINE static __m256i load_pairs(const uint8_t* from) {
    if (kBits == 4) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    // 32 columns are 12 bytes; the second half begins 4 bytes early, so that nothing is read past the block.
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8));
    const __m256i eight_columns = _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1,  //
                                                   4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1);
    const __m256i lane = _mm256_shuffle_epi8(_mm256_set_m128i(second, first), eight_columns);
    const auto apart = [](__m256i v, int lower, int upper, int by) __attribute__((always_inline)) {
      return _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi32(lower)),
                             _mm256_slli_epi32(_mm256_and_si256(v, _mm256_set1_epi32(upper)), by));
    };
    return apart(apart(lane, 0x000fff, 0xfff000, 4), 0x003f003f, 0x0fc00fc0, 2);
  }

  HXQ_ALWAYS_INLINE LevelBytes look_up(const uint8_t* from, int64_t cols) const {
    if (cols < kByteBlock) return look_up(PaddedBytes<32>(from, (cols * kBits + 7) / 8).bytes, kByteBlock);
    __m256i pairs = load_pairs(from);
    keep_in_register(pairs);
    const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
    return {_mm256_shuffle_epi8(table, _mm256_and_si256(pairs, mask)),
            _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pairs, kBits), mask))};
  }
};

/// Byte indices of the levels -128 to 127.
template <>
struct ByteForm<8> {
  using Part = ByteXPart;
  using Levels = LevelBytes;
  static constexpr int64_t kColumns = kByteBlock, kBytes = kByteBlock;
  static constexpr auto pack_x = pack_byte_x;
  static constexpr const int (&kLanes)[8] = lane_order(8);

  HXQ_ALWAYS_INLINE explicit ByteForm(const GroupedView&) {}

  HXQ_ALWAYS_INLINE LevelBytes look_up(const uint8_t* from, int64_t cols) const {
    if (cols < kByteBlock) return look_up(PaddedBytes<kByteBlock>(from, cols).bytes, kByteBlock);
    const __m256 a = load(from), b = load(from + 32);
    return {_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd))};
  }
};

}  // namespace
}  // namespace hxq::kernels::cpu
