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
inline __m256i lane_order(int32_t bits) {
  return bits == 8 ? _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7) : _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
}

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
  alignas(32) int32_t order[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(order), lane_order(bits));
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

/// A row's scales, in units of GroupedView::scale_unit, and zeros, since 16 bytes are read from every group on.
inline int64_t float_scales(const GroupedView& weight) { return (weight.groups + 4 + 15) / 16 * 16; }

inline void find_float_scales(const GroupedView& weight, int64_t row, float* scale) {
  const uint8_t* code = weight.scales + row * weight.groups;
  for (int64_t g = 0; g < weight.groups; g += 64) __builtin_prefetch(code + g + kScalePrefetch);
  for (int64_t g = 0; g < weight.groups; ++g) scale[g] = weight.scale_multiples[code[g]];
  for (int64_t g = weight.groups; g < weight.groups + 4; ++g) scale[g] = 0;
}

/// The scales of a block's lanes.
struct LaneScales {
  int log_group;
  __m256i lanes;

  HXQ_ALWAYS_INLINE explicit LaneScales(const GroupedView& weight) : log_group(__builtin_ctzll(weight.group)) {
    lanes = _mm256_srl_epi32(_mm256_slli_epi32(lane_order(weight.bits), 3), _mm_cvtsi32_si128(log_group));
  }

  HXQ_ALWAYS_INLINE VecF of_block(const float* row, int64_t col) const {
    const float* first = row + (col >> log_group);
    return _mm256_permutevar8x32_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(first)), lanes);
  }
};

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
    const __m256i pairs = load_pairs(from), mask = _mm256_set1_epi8((1 << kBits) - 1);
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

/// What the kernels of joint_gemv share.
struct ByteToken {
  const GroupedView& weight;
  const float* packed_x;
  int64_t x_floats;
  float* scales;  // [kGemvRows, float_scales]

  const ByteXPart* parts(int64_t t) const { return first_part<ByteXPart>(packed_x + t * x_floats); }

  Vec4 finish(int64_t t, Vec4 sums) const { return finish_sums(packed_x + t * x_floats, sums); }
};

/// A single token: rows are multiplied as they are read.
template <int kBits>
struct ByteStreams : ByteToken {
  const uint8_t* row[kGemvRows] = {};

  void open(int64_t first, int64_t rows) {
    for (int64_t i = 0; i < kGemvRows; ++i) {
      const int64_t at = first + (i < rows ? i : rows - 1);
      row[i] = weight.packed + at * weight.row_bytes;
      find_float_scales(weight, at, scales + i * float_scales(weight));
    }
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) const {
    for (int i = 0; i < kGemvRows; ++i) sums[kTokens - 1][i] = VecF{};  // never of more tokens than one
    const ByteLevels<kBits> levels(weight);
    const LaneScales by(weight);
    const int64_t cols = weight.cols, scales_apart = float_scales(weight);
    // One row after the other: they lie behind each other in memory, and one stream is what it is read fastest in.
    for (int i = 0; i < kGemvRows; ++i) {
      const uint8_t* from = row[i];
      const float* scale = scales + i * scales_apart;
      const ByteXPart* part = parts(t);
      VecF found = {};
      for (int64_t first = 0; first < cols; first += kDecodeQuantization.block, ++part) {
        VecF sum = {};
        for (int64_t b = 0; b < kByteBlocks && first + b * kByteBlock < cols; ++b, from += ByteLevels<kBits>::kBytes) {
          const int64_t col = first + b * kByteBlock;
          __builtin_prefetch(from + kPrefetch);
          sum += byte_products(levels.look_up(from, cols - col), part->block[b]) * by.of_block(scale, col);
        }
        found += sum * splat(part->scale);
      }
      sums[0][i] = found;
    }
  }
};

/// A block of a row that was looked up.
struct alignas(32) ByteBlock {
  LevelBytes level;
  VecF scale;
};

/// Several tokens: rows are looked up once, into memory.
template <int kBits>
struct ByteRows : ByteToken {
  ByteBlock* blocks;  // [kGemvRows, stride]

  static int64_t stride(int64_t cols) { return parts_of(cols) * kByteBlocks + 1; }  // no multiple of 4 KB

  void open(int64_t first, int64_t rows) {
    const ByteLevels<kBits> levels(weight);
    const LaneScales by(weight);
    for (int64_t i = 0; i < rows; ++i) {
      find_float_scales(weight, first + i, scales);
      const uint8_t* from = weight.packed + (first + i) * weight.row_bytes;
      ByteBlock* block = blocks + i * stride(weight.cols);
      for (int64_t col = 0; col < weight.cols; col += kByteBlock, from += ByteLevels<kBits>::kBytes, ++block) {
        __builtin_prefetch(from + kPrefetch);
        block->level = levels.look_up(from, weight.cols - col);
        block->scale = by.of_block(scales, col);
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
        const ByteXPart& part = parts(t + k)[first / kByteBlocks];
#pragma GCC unroll 4
        for (int i = 0; i < kGemvRows; ++i) {
          const ByteBlock* block = blocks + i * apart + first;
          VecF sum = {};
          for (int64_t b = 0; b < n; ++b) sum += byte_products(block[b].level, part.block[b]) * block[b].scale;
          found[k][i] += sum * splat(part.scale);
        }
      }
    }
#pragma GCC unroll 3
    for (int k = 0; k < kTokens; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) sums[k][i] = found[k][i];
    }
  }
};

int64_t byte_gemv_floats(const GroupedView& weight, int64_t tokens) {
  const int64_t blocks = kGemvRows * ByteRows<8>::stride(weight.cols) * static_cast<int64_t>(sizeof(ByteBlock) / 4);
  return kGemvRows * float_scales(weight) + (tokens == 1 ? 0 : blocks);
}

template <int kBits>
void byte_gemv_of(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  const ByteToken token{weight, work.packed_x, byte_x_floats(weight), work.memory};
  if (args.tokens == 1) return joint_gemv(ByteStreams<kBits>{token}, args, begin, end);
  auto* blocks = reinterpret_cast<ByteBlock*>(work.memory + kGemvRows * float_scales(weight));
  joint_gemv(ByteRows<kBits>{token, blocks}, args, begin, end);
}

void byte_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  const auto multiply = weight.bits == 3 ? byte_gemv_of<3> : weight.bits == 4 ? byte_gemv_of<4> : byte_gemv_of<8>;
  multiply(weight, args, work, begin, end);
}

constexpr Gemv<GroupedView> kByteGemv{
    .packed_x_floats = byte_x_floats, .pack_x = pack_byte_x, .memory_floats = byte_gemv_floats, .multiply = byte_gemv};

const Gemv<GroupedView>& choose_grouped_gemv(const GroupedView& weight) {
  return weight.level_bytes && has_integer_groups(weight) ? kByteGemv : kDecodedGemv;
}

}  // namespace
}  // namespace hxq::kernels::cpu
