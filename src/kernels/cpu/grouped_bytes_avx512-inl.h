// Decode rows times a grouped matrix whose levels are few and whole numbers of a byte (GroupedView::level_bytes), on
// AVX-512 VNNI. x is rounded to 13 bits as in integer_gemv_avx512-inl.h and cut into two bytes, 128 * high + low; one
// vpdpbusd does 64 products of bytes. Weights stay exact: sums within a group are whole numbers, which are multiplied
// by the group's scale and added up in float.
//
// Levels are looked up plus 128, without a sign, as vpdpbusd takes them. What that adds is taken off where sums begin.

#pragma once

#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/grouped_levels_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kByteBlock = 128;                                      // columns of 64 bytes of 4-bit indices
constexpr int64_t kByteBlocks = kDecodeQuantization.block / kByteBlock;  // that share a scale of x

/// 128 columns of x. A lane of 32 bits has 8 adjacent columns: the even ones in its bytes of `even`, the odd ones in
/// those of `odd`.
struct alignas(64) ByteX {
  int8_t even_high[64], odd_high[64], even_low[64], odd_low[64];
  int32_t begin[16];  ///< what the sum of the upper bytes begins with: minus the sum of the lane's x
};

/// Of one token: QuantizedHead, the scales of x, whole pairs of ByteX.
int64_t byte_x_floats(const GroupedView& weight) {
  return blocks_at(weight.cols) + scales_of(weight.cols) * kByteBlocks * static_cast<int64_t>(sizeof(ByteX) / 4);
}

/// 32 whole numbers as bytes: x = 128 * high + low, low in [-64, 63].
inline void store_bytes(__m512i x, int8_t* high, int8_t* low) {
  const __m512i upper = _mm512_srai_epi16(_mm512_add_epi16(x, _mm512_set1_epi16(64)), 7);
  const __m512i lower = _mm512_sub_epi16(x, _mm512_slli_epi16(upper, 7));
  _mm256_store_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi16_epi8(upper));
  _mm256_store_si256(reinterpret_cast<__m256i*>(low), _mm512_cvtepi16_epi8(lower));
}

/// 64 columns in order, 32 each, to half `half` of the block.
inline void store_columns(__m512i first, __m512i second, int64_t half, ByteX* to) {
  alignas(64) static constexpr int16_t kEven[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                    32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  const __m512i even = _mm512_load_si512(kEven);
  const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
  const int64_t at = half * 32;
  store_bytes(_mm512_permutex2var_epi16(first, even, second), to->even_high + at, to->even_low + at);
  store_bytes(_mm512_permutex2var_epi16(first, odd, second), to->odd_high + at, to->odd_low + at);
}

inline void set_begin(ByteX* block) {
  const __m512i ones = _mm512_set1_epi8(1);
  const auto sum = [&](const int8_t* first, const int8_t* second) {
    const __m512i part = _mm512_dpbusd_epi32(__m512i{}, ones, _mm512_load_si512(first));
    return _mm512_dpbusd_epi32(part, ones, _mm512_load_si512(second));
  };
  const __m512i high = sum(block->even_high, block->odd_high), low = sum(block->even_low, block->odd_low);
  const __m512i all = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
  _mm512_store_si512(block->begin, _mm512_sub_epi32(__m512i{}, all));
}

void pack_byte_x(const GroupedView& weight, const float* x, float* packed_x) {
  auto* block = reinterpret_cast<ByteX*>(packed_x + blocks_at(weight.cols));
  round_x<kByteBlock>(x, weight.cols, weight.scale_unit, packed_x, [&](int64_t col, __m512i first, __m512i second) {
    const int64_t half = col / kBlock % 2;
    store_columns(first, second, half, block + col / kByteBlock);
    if (half == 1) set_begin(block + col / kByteBlock);
  });
}

/// Indices of up to 128 columns as bytes: the lower kBits of a byte are that of an even column, the next kBits that of
/// the odd one after it, and what is above them belongs to other columns.
template <int kBits>
struct BytePairs {
  alignas(64) uint8_t byte[64];
  alignas(64) uint8_t shift[64];

  constexpr BytePairs() : byte(), shift() {
    for (int i = 0; i < 64; ++i) {
      byte[i] = static_cast<uint8_t>(i / 8 * 2 * kBits + i % 8);
      shift[i] = static_cast<uint8_t>(i % 8 * 2 * kBits);
    }
  }
};

template <int kBits>
constexpr BytePairs<kBits> kBytePairs = {};

template <int kBits>
struct ByteLevels {
  __m512i byte, shift, table;

  HXQ_ALWAYS_INLINE explicit ByteLevels(const GroupedView& weight)
      : byte(_mm512_load_si512(kBytePairs<kBits>.byte)),
        shift(_mm512_load_si512(kBytePairs<kBits>.shift)),
        table(ByteTable::in_register(weight.level_bytes)) {}

  HXQ_ALWAYS_INLINE __m512i load(const uint8_t* from, int64_t cols) const {
    constexpr __mmask64 kWhole = kBits == 4 ? ~__mmask64{0} : (__mmask64{1} << 16 * kBits % 64) - 1;
    const __mmask64 keep = cols >= kByteBlock ? kWhole : first_bytes((cols * kBits + 7) / 8);
    const __m512i packed = _mm512_maskz_loadu_epi8(keep, from);
    return kBits == 4 ? packed : _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(byte, packed));
  }

  HXQ_ALWAYS_INLINE __m512i even(__m512i pairs) const { return _mm512_permutexvar_epi8(pairs, table); }
  HXQ_ALWAYS_INLINE __m512i odd(__m512i pairs) const {
    return _mm512_permutexvar_epi8(_mm512_srli_epi16(pairs, kBits), table);
  }
};

/// The sums of a block's lanes.
HXQ_ALWAYS_INLINE VecF byte_products(__m512i even, __m512i odd, const ByteX& x) {
  __m512i high = _mm512_dpbusd_epi32(_mm512_load_si512(x.begin), even, _mm512_load_si512(x.even_high));
  high = _mm512_dpbusd_epi32(high, odd, _mm512_load_si512(x.odd_high));
  const __m512i low = _mm512_dpbusd_epi32(_mm512_slli_epi32(high, 7), even, _mm512_load_si512(x.even_low));
  return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(low, odd, _mm512_load_si512(x.odd_low)));
}

/// One decode row.
template <int kBits, int kGroups>
struct ByteKernel {
  const GroupedView& weight;
  const float* packed_x;

  /// Adds a block of kRows rows. Each stream is prefetched. codes: of the block's groups.
  template <int kRows>
  HXQ_ALWAYS_INLINE void add_block(VecF (&sum)[kRows], const ByteLevels<kBits>& levels, StreamBytes packed,
                                   StreamBytes codes, int64_t cols, const ByteX& x) const {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = packed[i];
      _mm_prefetch(reinterpret_cast<const char*>(from) + kStreamPrefetch, _MM_HINT_T0);
      const __m512i pairs = levels.load(from, cols);
      sum[i] += byte_products(levels.even(pairs), levels.odd(pairs), x) *
                BlockGroups<kGroups>::look_up(weight.scale_multiples, codes[i]);
    }
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    const ByteLevels<kBits> levels(weight);
    for (int64_t r = 0; r < rows; ++r) {
      const auto* x = reinterpret_cast<const ByteX*>(packed_x + blocks_at(weight.cols));
      const float* x_scale = packed_x + kScalesAt;
      VecF total[kRows] = {}, sum[kRows] = {};
      for_blocks<kBits, kByteBlock, kGroups, kRows>(
          weight, row + r, apart,
          [&](StreamBytes packed, StreamBytes codes, int64_t cols)
              __attribute__((always_inline)) { add_block(sum, levels, packed, codes, cols, *x++); },
          [&]() __attribute__((always_inline)) {
            const VecF by = splat(*x_scale++);
#pragma GCC unroll 4
            for (int i = 0; i < kRows; ++i) {
              total[i] += sum[i] * by;
              sum[i] = VecF{};
            }
          });
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) totals[i][r] = total[i];
    }
  }

  VecF finish(int64_t, int64_t, VecF sums) const { return with_exponent(packed_x, sums); }
};

/// A block of a row that was looked up.
struct alignas(64) ByteBlock {
  uint8_t even[64], odd[64];
  float scale[16];
};

/// A kernel of joint_gemv.
template <int kBits, int kGroups>
struct ByteRows {
  const GroupedView& weight;
  const float* packed_x;
  int64_t x_floats;
  ByteBlock* blocks;  // [kGemvRows, stride]
  Ahead ahead;

  static int64_t count(int64_t cols) { return (cols + kByteBlock - 1) / kByteBlock; }
  static int64_t stride(int64_t cols) { return scales_of(cols) * kByteBlocks + 1; }

  void open(int64_t first, int64_t rows) {
    const ByteLevels<kBits> levels(weight);
    const BlockGroups<kGroups> by(weight);
    const int64_t cols = weight.cols, apart = stride(cols);
    Ahead next = ahead;
    next.start(weight.packed + (first + kGemvRows) * weight.row_bytes);
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t* row_codes = weight.scales + (first + i) * weight.groups;
      const uint8_t* packed = weight.packed + (first + i) * weight.row_bytes;
      ByteBlock* block = blocks + i * apart;
      for (int64_t col = 0; col < cols; col += kByteBlock, packed += kByteBlock / 8 * kBits, ++block) {
        const __m512i pairs = levels.load(packed, cols - col);
        _mm512_store_si512(block->even, levels.even(pairs));
        _mm512_store_si512(block->odd, levels.odd(pairs));
        uint8_t rest[kGroups];
        store(block->scale, by.look_up(weight.scale_multiples, by.codes(row_codes, col, rest)));
        next.step();
      }
    }
    ahead = next;
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) {
    const int64_t all = count(weight.cols), apart = stride(weight.cols);
    const float* token = packed_x + t * x_floats;
    const int64_t first_x = blocks_at(weight.cols);
    Ahead next = ahead;
    VecF found[kTokens][kGemvRows] = {};
    for (int64_t b = 0, s = 0; b < all; b += kByteBlocks, ++s) {
      const int64_t n = all - b < kByteBlocks ? all - b : kByteBlocks;
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) {
        const ByteBlock* block = blocks + i * apart + b;
#pragma GCC unroll 3
        for (int k = 0; k < kTokens; ++k) {
          const float* packed = token + k * x_floats;
          const auto* x = reinterpret_cast<const ByteX*>(packed + first_x) + b;
          VecF sum = {};
          for (int64_t j = 0; j < n; ++j) {
            const VecF part = byte_products(_mm512_load_si512(block[j].even), _mm512_load_si512(block[j].odd), x[j]);
            sum += part * load(block[j].scale);
          }
          found[k][i] += sum * splat(packed[kScalesAt + s]);
        }
      }
      for (int64_t j = 0; j < 2 * kByteBlocks; ++j) next.step();
    }
#pragma GCC unroll 3
    for (int k = 0; k < kTokens; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) sums[k][i] = found[k][i];
    }
    ahead = next;
  }

  Vec4 finish(int64_t t, Vec4 sums) const { return with_exponent(packed_x + t * x_floats, sums); }
};

int64_t byte_gemv_floats(const GroupedView& weight, int64_t tokens) {
  const int64_t stride = ByteRows<4, 1>::stride(weight.cols);
  return tokens == 1 ? 0 : kGemvRows * stride * static_cast<int64_t>(sizeof(ByteBlock) / sizeof(float));
}

template <int kBits, int kGroups>
void byte_gemv_of(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  if (args.tokens == 1) return gemv_rows<4>(ByteKernel<kBits, kGroups>{weight, work.packed_x}, args, begin, end);
  auto* blocks = reinterpret_cast<ByteBlock*>(work.memory);
  const Ahead ahead(args.tokens, kBits);
  joint_gemv(ByteRows<kBits, kGroups>{weight, work.packed_x, byte_x_floats(weight), blocks, ahead}, args, begin, end);
}

template <int kBits>
void byte_gemv_by_group(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin,
                        int64_t end) {
  const auto multiply = weight.group == 16   ? byte_gemv_of<kBits, 8>
                        : weight.group == 32 ? byte_gemv_of<kBits, 4>
                        : weight.group == 64 ? byte_gemv_of<kBits, 2>
                                             : byte_gemv_of<kBits, 1>;
  multiply(weight, args, work, begin, end);
}

void byte_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  (weight.bits == 3 ? byte_gemv_by_group<3> : byte_gemv_by_group<4>)(weight, args, work, begin, end);
}

constexpr Gemv<GroupedView> kByteGemv{.panel_tokens = 1,
                                      .packed_x_floats = byte_x_floats,
                                      .pack_x = pack_token<GroupedView, pack_byte_x>,
                                      .memory_floats = byte_gemv_floats,
                                      .multiply = byte_gemv};

}  // namespace
}  // namespace hxq::kernels::cpu
