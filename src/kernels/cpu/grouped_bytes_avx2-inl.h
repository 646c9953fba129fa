// Decode rows times a grouped matrix whose levels are whole numbers of a byte (GroupedView::level_bytes), on AVX2:
// vpshufb looks up to 16 levels up, and indices of 256 of them are the levels already; vpmaddubsw multiplies these with
// the two bytes of x, 128 * high + low. As on AVX-512 (grouped_bytes_avx512-inl.h) x is rounded to 13 bits and weights
// are exact.
//
// Levels are taken plus 128, without a sign, as vpmaddubsw takes them; what that adds is taken off where sums
// begin. Nothing saturates: low is in [-64, 63] and high in [-32, 32], so that two products of the one, 2 * 255 * 64,
// and four of the other, 4 * 255 * 32, fit 16 bits.

#pragma once

#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/gemv_rows-inl.h"
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

int64_t byte_x_floats(const GroupedView& weight) { return packed_floats<ByteXPart>(weight.cols); }

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

/// Bytes ahead of its reading that a stream of scales is asked for.
constexpr int64_t kScalePrefetch = 256;

/// The lanes of a block that have columns of group `group` of kGroups, a bit each.
template <int kBits, int kGroups>
constexpr int lanes_of(int group) {
  int lanes = 0;
  for (int lane = 0; lane < 8; ++lane) lanes |= (lane_order(kBits)[lane] * kGroups / 8 == group) << lane;
  return lanes;
}

/// The scales of a block's lanes, in units of GroupedView::scale_unit.
template <int kBits, int kGroups>
HXQ_ALWAYS_INLINE VecF lane_scales(const float* multiples, const uint8_t* code) {
  static_assert(kGroups == 1 || kGroups == 2 || kGroups == 4);
  const auto scale = [&](int g) __attribute__((always_inline)) { return _mm256_broadcast_ss(multiples + code[g]); };
  __m256 lanes = scale(0);
  if constexpr (kGroups > 1) lanes = _mm256_blend_ps(lanes, scale(1), (lanes_of<kBits, kGroups>(1)));
  if constexpr (kGroups > 2) {
    lanes = _mm256_blend_ps(lanes, scale(2), (lanes_of<kBits, kGroups>(2)));
    lanes = _mm256_blend_ps(lanes, scale(3), (lanes_of<kBits, kGroups>(3)));
  }
  return lanes;
}

/// Levels of 64 columns, as ByteX has them.
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

template <int kBits>
struct ByteLevels {
  static constexpr int64_t kBytes = kByteBlock / 8 * kBits;
  __m256i table;

  HXQ_ALWAYS_INLINE explicit ByteLevels(const GroupedView& weight)
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
struct ByteLevels<8> {
  static constexpr int64_t kBytes = kByteBlock;

  HXQ_ALWAYS_INLINE explicit ByteLevels(const GroupedView&) {}

  HXQ_ALWAYS_INLINE LevelBytes look_up(const uint8_t* from, int64_t cols) const {
    if (cols < kByteBlock) return look_up(PaddedBytes<kByteBlock>(from, cols).bytes, kByteBlock);
    const __m256 a = load(from), b = load(from + 32);
    return {_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd))};
  }
};

/// The sums of a block's lanes.
HXQ_ALWAYS_INLINE VecF byte_products(const LevelBytes& level, const ByteX& x) {
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

/// One decode row: a kernel of gemv_rows.
template <int kBits, int kGroups>
struct ByteKernel {
  const GroupedView& weight;
  const float* packed_x;

  /// The sums of a row of each of kRows streams.
  template <int kRows>
  HXQ_ALWAYS_INLINE void sum_row(int64_t row, int64_t apart, VecF (&found)[kRows]) const {
    constexpr int64_t kBytes = ByteLevels<kBits>::kBytes;
    const ByteLevels<kBits> levels(weight);
    const GroupCodes<kGroups> groups(weight);
    const float* multiples = weight.scale_multiples;
    const ByteXPart* part = first_part<ByteXPart>(packed_x);
    const uint8_t *from[kRows], *code[kRows];
    for (int i = 0; i < kRows; ++i) {
      from[i] = weight.packed + (row + i * apart) * weight.row_bytes;
      code[i] = weight.scales + (row + i * apart) * weight.groups;
      found[i] = VecF{};
    }
    int64_t col = 0;
    for (; weight.cols - col >= kDecodeQuantization.block; col += kDecodeQuantization.block, ++part) {
      VecF sum[kRows] = {};
      for (int i = 0; i < kRows; ++i) __builtin_prefetch(code[i] + kScalePrefetch);
#pragma GCC unroll 4
      for (int64_t b = 0; b < kByteBlocks; ++b) {
        const ByteX& x = part->block[b];
        const int64_t group = kGroups == 1 ? groups.group_of(col + b * kByteBlock) : b * kGroups;
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          if (b * kBytes % 64 < kBytes) __builtin_prefetch(from[i] + b * kBytes + kStreamPrefetch);
          const VecF product = byte_products(levels.look_up(from[i] + b * kBytes, kByteBlock), x);
          const VecF scale = lane_scales<kBits, kGroups>(multiples, code[i] + group);
          sum[i] += product * scale;
        }
      }
      for (int i = 0; i < kRows; ++i) {
        found[i] += sum[i] * splat(part->scale);
        from[i] += kByteBlocks * kBytes;
        if (kGroups > 1) code[i] += kByteBlocks * kGroups;
      }
    }
    if (col == weight.cols) return;
    VecF sum[kRows] = {};
    for (const ByteX* x = part->block; col < weight.cols; col += kByteBlock, ++x) {
      for (int i = 0; i < kRows; ++i) {
        uint8_t rest[kGroups];
        const uint8_t* codes = groups.codes(weight.scales + (row + i * apart) * weight.groups, col, rest);
        const VecF product = byte_products(levels.look_up(from[i], weight.cols - col), *x);
        sum[i] += product * lane_scales<kBits, kGroups>(multiples, codes);
        from[i] += kBytes;
      }
    }
    for (int i = 0; i < kRows; ++i) found[i] += sum[i] * splat(part->scale);
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    for (int64_t r = 0; r < rows; ++r) {
      VecF found[kRows];
      sum_row<kRows>(row + r, apart, found);
      for (int i = 0; i < kRows; ++i) totals[i][r] = found[i];
    }
  }

  VecF finish(int64_t, int64_t, VecF sums) const { return finish_sums(packed_x, sums); }
};

/// A block of a row that was looked up.
struct alignas(32) ByteBlock {
  LevelBytes level;
  VecF scale;
};

/// Several decode rows: a kernel of joint_gemv that looks rows up once, into memory.
template <int kBits, int kGroups>
struct ByteRows {
  const GroupedView& weight;
  const float* packed_x;
  int64_t x_floats;
  ByteBlock* blocks;  // [kGemvRows, stride]

  static int64_t stride(int64_t cols) { return parts_of(cols) * kByteBlocks + 1; }  // no multiple of 4 KB

  void open(int64_t first, int64_t rows) {
    const ByteLevels<kBits> levels(weight);
    const GroupCodes<kGroups> groups(weight);
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t* code = weight.scales + (first + i) * weight.groups;
      const uint8_t* from = weight.packed + (first + i) * weight.row_bytes;
      ByteBlock* block = blocks + i * stride(weight.cols);
      for (int64_t col = 0; col < weight.cols; col += kByteBlock, from += ByteLevels<kBits>::kBytes, ++block) {
        __builtin_prefetch(from + kPrefetch);
        block->level = levels.look_up(from, weight.cols - col);
        uint8_t rest[kGroups];
        block->scale = lane_scales<kBits, kGroups>(weight.scale_multiples, groups.codes(code, col, rest));
      }
    }
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) const {
    const int64_t all = (weight.cols + kByteBlock - 1) / kByteBlock, apart = stride(weight.cols);
    VecF found[kTokens][kGemvRows] = {};
    for (int64_t first = 0; first < all; first += kByteBlocks) {
      const int64_t n = all - first < kByteBlocks ? all - first : kByteBlocks;
#pragma GCC unroll 3
      for (int k = 0; k < kTokens; ++k) {
        const ByteXPart& part = first_part<ByteXPart>(packed_x + (t + k) * x_floats)[first / kByteBlocks];
        VecF sum[kGemvRows] = {};
        for (int64_t b = 0; b < n; ++b) {
          const ByteX& x = part.block[b];
#pragma GCC unroll 4
          for (int i = 0; i < kGemvRows; ++i) {
            const ByteBlock& block = blocks[i * apart + first + b];
            sum[i] += byte_products(block.level, x) * block.scale;
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kGemvRows; ++i) found[k][i] += sum[i] * splat(part.scale);
      }
    }
#pragma GCC unroll 3
    for (int k = 0; k < kTokens; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) sums[k][i] = found[k][i];
    }
  }

  Vec4 finish(int64_t t, Vec4 sums) const { return finish_sums(packed_x + t * x_floats, sums); }
};

int64_t byte_gemv_floats(const GroupedView& weight, int64_t tokens) {
  const int64_t blocks = kGemvRows * ByteRows<8, 1>::stride(weight.cols);
  return tokens == 1 ? 0 : blocks * static_cast<int64_t>(sizeof(ByteBlock) / sizeof(float));
}

template <int kBits, int kGroups>
void byte_gemv_of(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  if (args.tokens == 1) return gemv_rows<2>(ByteKernel<kBits, kGroups>{weight, work.packed_x}, args, begin, end);
  auto* blocks = reinterpret_cast<ByteBlock*>(work.memory);
  joint_gemv(ByteRows<kBits, kGroups>{weight, work.packed_x, byte_x_floats(weight), blocks}, args, begin, end);
}

template <int kBits>
void byte_gemv_by_group(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin,
                        int64_t end) {
  const auto multiply = weight.group == 16   ? byte_gemv_of<kBits, 4>
                        : weight.group == 32 ? byte_gemv_of<kBits, 2>
                                             : byte_gemv_of<kBits, 1>;
  multiply(weight, args, work, begin, end);
}

void byte_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  const auto multiply = weight.bits == 3   ? byte_gemv_by_group<3>
                        : weight.bits == 4 ? byte_gemv_by_group<4>
                                           : byte_gemv_by_group<8>;
  multiply(weight, args, work, begin, end);
}

constexpr Gemv<GroupedView> kByteGemv{
    .packed_x_floats = byte_x_floats, .pack_x = pack_byte_x, .memory_floats = byte_gemv_floats, .multiply = byte_gemv};

const Gemv<GroupedView>& choose_grouped_gemv(const GroupedView& weight) {
  return weight.level_bytes && has_integer_groups(weight) ? kByteGemv : kDecodedGemv;
}

}  // namespace
}  // namespace hxq::kernels::cpu
