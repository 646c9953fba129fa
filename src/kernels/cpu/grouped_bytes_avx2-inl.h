// Decode rows times a grouped matrix whose levels are few and whole numbers of a byte (GroupedView::level_bytes), on
// AVX2: vpshufb looks levels up, vpmaddubsw multiplies them with the two bytes of x, 128 * high + low. As on AVX-512
// (grouped_bytes_avx512-inl.h) x is rounded to 13 bits and weights are exact.
//
// Levels are looked up plus 128, without a sign, as vpmaddubsw takes them; what that adds is taken off where sums
// begin. Nothing saturates: low is in [-64, 63] and high in [-32, 32], so that two products of the one, 2 * 255 * 64,
// and four of the other, 4 * 255 * 32, fit 16 bits.

#pragma once

#include "kernels/activation_quantization.h"
#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/math-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kByteBlock = 64;
constexpr int64_t kByteBlocks = kDecodeQuantization.block / kByteBlock;  // that share a scale of x

/// 64 columns of x. A lane of 32 bits has 8 adjacent columns: the even ones in its bytes of `even`, the odd ones in
/// those of `odd`.
struct alignas(32) ByteX {
  int8_t even_high[32], odd_high[32], even_low[32], odd_low[32];
  int32_t begin[8];  ///< -128 times the sum of the lane's x
};

/// Packed x of one token: this, then for every 256 columns their scale and blocks.
struct alignas(32) ByteXHead {
  float exponent;  ///< sums are multiplied by 2 to this: scales alone might be out of float's range
};
struct alignas(32) ByteXPart {
  ByteX block[kByteBlocks];
  float scale;
};

inline int64_t byte_parts(int64_t cols) { return (cols + kDecodeQuantization.block - 1) / kDecodeQuantization.block; }

int64_t byte_x_floats(const GroupedView& weight) {
  const auto bytes =
      static_cast<int64_t>(sizeof(ByteXHead)) + byte_parts(weight.cols) * static_cast<int64_t>(sizeof(ByteXPart));
  return (bytes + 63) / 64 * 16;
}

/// The largest magnitude of n numbers; magnitudes are ordered as their bits, infinities and NaN above all others.
inline float largest_magnitude(const float* x, int64_t n) {
  VecI largest = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecF v = n - i >= kLanes ? load(x + i) : load_first(x + i, n - i);
    const VecI bits = bits_of(v) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  int32_t most = 0;
  for (int64_t i = 0; i < kLanes; ++i) most = largest[i] > most ? largest[i] : most;
  return __builtin_bit_cast(float, most);
}

/// The exponent of a number, -127 for 0 and those below the normal ones.
inline int32_t exponent_of(float v) { return (__builtin_bit_cast(int32_t, v) >> 23 & 0xff) - 127; }

/// Whole numbers of 64 columns.
inline void put_block(const int32_t* whole, ByteX* to) {
  for (int64_t lane = 0; lane < 8; ++lane) {
    int32_t sum = 0;
    for (int64_t i = 0; i < 8; ++i) {
      const int32_t x = whole[lane * 8 + i], high = (x + 64) >> 7;
      sum += x;
      (i % 2 == 0 ? to->even_high : to->odd_high)[lane * 4 + i / 2] = static_cast<int8_t>(high);
      (i % 2 == 0 ? to->even_low : to->odd_low)[lane * 4 + i / 2] = static_cast<int8_t>(x - high * 128);
    }
    to->begin[lane] = -128 * sum;
  }
}

void pack_byte_x(const GroupedView& weight, const float* x, float* packed_x) {
  const float most = largest_magnitude(x, weight.cols);
  const int32_t exponent = most <= __FLT_MAX__ ? exponent_of(most) : 0;
  const int32_t all = exponent + exponent_of(weight.scale_unit);
  reinterpret_cast<ByteXHead*>(packed_x)->exponent = static_cast<float>(all < -252 ? -252 : all);
  auto* part = reinterpret_cast<ByteXPart*>(packed_x + sizeof(ByteXHead) / sizeof(float));
  for (int64_t first = 0; first < weight.cols; first += kDecodeQuantization.block, ++part) {
    const int64_t n = weight.cols - first < kDecodeQuantization.block ? weight.cols - first : kDecodeQuantization.block;
    const float here = scale_by_power(splat(largest_magnitude(x + first, n)), splat(static_cast<float>(-exponent)))[0];
    // What is not finite makes all sums of the token NaN; what is too small for a reciprocal counts as 0.
    const bool finite = here <= __FLT_MAX__, counts = finite && here >= 0x1p-100f;
    const VecF inverse = splat(counts ? kDecodeQuantization.largest / here : 0);
    part->scale = counts ? here / kDecodeQuantization.largest : finite ? 0 : __builtin_nanf("");
    alignas(32) int32_t whole[kDecodeQuantization.block] = {};
    for (int64_t i = 0; i < n; i += kLanes) {
      const VecF v = n - i >= kLanes ? load(x + first + i) : load_first(x + first + i, n - i);
      const VecF scaled = scale_by_power(v, splat(static_cast<float>(-exponent))) * inverse;
      if (counts) _mm256_store_si256(reinterpret_cast<__m256i*>(whole + i), _mm256_cvtps_epi32(scaled));
    }
    for (int64_t b = 0; b < kByteBlocks; ++b) put_block(whole + b * kByteBlock, part->block + b);
  }
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

/// Group sizes whose scales are known by the place in a block.
inline bool has_lane_groups(const GroupedView& weight) {
  return weight.group >= 16 && (weight.group & (weight.group - 1)) == 0;
}

/// The scales of a block's lanes.
struct LaneScales {
  int log_group;
  __m256i lanes;

  HXQ_ALWAYS_INLINE explicit LaneScales(const GroupedView& weight) : log_group(__builtin_ctzll(weight.group)) {
    lanes = _mm256_srl_epi32(_mm256_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56), _mm_cvtsi32_si128(log_group));
  }

  HXQ_ALWAYS_INLINE VecF of_block(const float* row, int64_t col) const {
    const float* first = row + (col >> log_group);
    return _mm256_permutevar8x32_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(first)), lanes);
  }
};

/// Levels of the even and of the odd ones of 64 columns.
struct LevelBytes {
  __m256i even, odd;
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
    alignas(32) uint8_t padded[32] = {};
    if (cols < kByteBlock) {
      __builtin_memcpy(padded, from, static_cast<size_t>((cols * kBits + 7) / 8));
      from = padded;
    }
    const __m256i pairs = load_pairs(from), mask = _mm256_set1_epi8((1 << kBits) - 1);
    return {_mm256_shuffle_epi8(table, _mm256_and_si256(pairs, mask)),
            _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pairs, kBits), mask))};
  }
};

/// The sums of a block's lanes.
HXQ_ALWAYS_INLINE VecF byte_products(const LevelBytes& level, const ByteX& x) {
  const auto at = [](const void* bytes) __attribute__((always_inline)) {
    return _mm256_load_si256(static_cast<const __m256i*>(bytes));
  };
  const __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(level.even, at(x.even_high)),
                                        _mm256_maddubs_epi16(level.odd, at(x.odd_high)));
  const __m256i low_even = _mm256_maddubs_epi16(level.even, at(x.even_low));
  const __m256i low_odd = _mm256_maddubs_epi16(level.odd, at(x.odd_low));
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(low_even, one), _mm256_madd_epi16(low_odd, one));
  const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(128)), at(x.begin));
  return _mm256_cvtepi32_ps(_mm256_add_epi32(sum, low));
}

/// What the kernels of joint_gemv share.
struct ByteToken {
  const GroupedView& weight;
  const float* packed_x;
  int64_t x_floats;
  float* scales;  // [kGemvRows, float_scales]

  const ByteXPart* parts(int64_t t) const {
    return reinterpret_cast<const ByteXPart*>(packed_x + t * x_floats + sizeof(ByteXHead) / sizeof(float));
  }

  Vec4 finish(int64_t t, Vec4 sums) const {
    const float exponent = reinterpret_cast<const ByteXHead*>(packed_x + t * x_floats)->exponent;
    VecF scaled = scale_by_power(_mm256_castps128_ps256(sums), splat(exponent));
    keep_in_register(scaled);  // or what is added later would be fused with it, or not, depending on the caller
    return _mm256_castps256_ps128(scaled);
  }
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
    const uint8_t* const from[kGemvRows] = {row[0], row[1], row[2], row[3]};
    VecF found[kGemvRows] = {};
    const ByteXPart* part = parts(t);
    for (int64_t first = 0; first < cols; first += kDecodeQuantization.block, ++part) {
      VecF sum[kGemvRows] = {};
      for (int64_t b = 0; b < kByteBlocks && first + b * kByteBlock < cols; ++b) {
        const int64_t col = first + b * kByteBlock, at = col / 8 * kBits;
#pragma GCC unroll 4
        for (int i = 0; i < kGemvRows; ++i) {
          __builtin_prefetch(from[i] + at + kPrefetch);
          sum[i] += byte_products(levels.look_up(from[i] + at, cols - col), part->block[b]) *
                    by.of_block(scales + i * scales_apart, col);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) found[i] += sum[i] * splat(part->scale);
    }
    for (int i = 0; i < kGemvRows; ++i) sums[0][i] = found[i];
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

  static int64_t stride(int64_t cols) { return byte_parts(cols) * kByteBlocks + 1; }  // no multiple of 4 KB

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
  const int64_t blocks = kGemvRows * ByteRows<4>::stride(weight.cols) * static_cast<int64_t>(sizeof(ByteBlock) / 4);
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
  (weight.bits == 3 ? byte_gemv_of<3> : byte_gemv_of<4>)(weight, args, work, begin, end);
}

constexpr Gemv<GroupedView> kByteGemv{
    .packed_x_floats = byte_x_floats, .pack_x = pack_byte_x, .memory_floats = byte_gemv_floats, .multiply = byte_gemv};

const Gemv<GroupedView>& choose_grouped_gemv(const GroupedView& weight) {
  return weight.level_bytes && has_lane_groups(weight) ? kByteGemv : kDecodedGemv;
}

}  // namespace
}  // namespace hxq::kernels::cpu
