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
  int32_t begin[16];  ///< -128 times the sum of the lane's x
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
  _mm512_store_si512(block->begin, _mm512_sub_epi32(__m512i{}, _mm512_slli_epi32(all, 7)));
}

void pack_byte_x(const GroupedView& weight, const float* x, float* packed_x) {
  auto* block = reinterpret_cast<ByteX*>(packed_x + blocks_at(weight.cols));
  round_x<kByteBlock>(x, weight.cols, weight.scale_unit, packed_x, [&](int64_t col, __m512i first, __m512i second) {
    const int64_t half = col / kBlock % 2;
    store_columns(first, second, half, block + col / kByteBlock);
    if (half == 1) set_begin(block + col / kByteBlock);
  });
}

/// Scales of groups of four rows that are multiplied together: eight groups of the first, of the second and so on, then
/// the next eight. Whole 64 groups are written, and 32 bytes may be read from every group on.
constexpr int64_t kFloatScalesAtOnce = 8;

inline int64_t float_scales(const GroupedView& weight) { return blocks_of(weight.groups) * kBlock * 4 + 16; }

/// `scale`: kFloatScalesAtOnce numbers further for each of the four rows.
__attribute__((noinline)) void find_float_scales(const GroupedView& weight, int64_t row, float* scale) {
  for_scales(
      weight, row, [&](int64_t first, VecF scales) __attribute__((always_inline)) {
        float* to = scale + 4 * first;
        _mm256_storeu_ps(to, _mm512_castps512_ps256(scales));
        _mm256_storeu_ps(to + 4 * kFloatScalesAtOnce, _mm512_extractf32x8_ps(scales, 1));
      });
}

/// The scales of a block's lanes.
struct LaneScales {
  int64_t log_group;
  __m512i lanes;

  HXQ_ALWAYS_INLINE explicit LaneScales(const GroupedView& weight) : log_group(__builtin_ctzll(weight.group)) {
    const __m512i col = _mm512_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
    lanes = _mm512_srl_epi32(col, _mm_cvtsi64_si128(log_group));
  }

  /// Where the scale of a block's first group is.
  HXQ_ALWAYS_INLINE int64_t place_of(int64_t col) const {
    const int64_t group = col >> log_group;
    return (group & ~int64_t{7}) * 4 + (group & 7);
  }

  HXQ_ALWAYS_INLINE VecF of_block(const float* scale) const {
    return _mm512_permutexvar_ps(lanes, _mm512_broadcast_f32x8(_mm256_loadu_ps(scale)));
  }
};

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
  __m512i high = _mm512_dpbusd_epi32(__m512i{}, even, _mm512_load_si512(x.even_high));
  __m512i low = _mm512_dpbusd_epi32(_mm512_load_si512(x.begin), even, _mm512_load_si512(x.even_low));
  high = _mm512_dpbusd_epi32(high, odd, _mm512_load_si512(x.odd_high));
  low = _mm512_dpbusd_epi32(low, odd, _mm512_load_si512(x.odd_low));
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 7), low));
}

/// One decode row.
template <int kBits>
struct ByteKernel {
  const GroupedView& weight;
  const float* packed_x;
  float* scales;  // of 4 rows

  /// Adds a block of a row of each of kRows streams, `apart` bytes from each other. Each stream is prefetched.
  template <int kRows>
  HXQ_ALWAYS_INLINE static void add_block(VecF (&sum)[kRows], const ByteLevels<kBits>& levels, const LaneScales& by,
                                          const uint8_t* packed, int64_t apart, const float* scale, int64_t cols,
                                          const ByteX& x) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = packed + i * apart;
      _mm_prefetch(reinterpret_cast<const char*>(from) + kStreamPrefetch, _MM_HINT_T0);
      const __m512i pairs = levels.load(from, cols);
      sum[i] += byte_products(levels.even(pairs), levels.odd(pairs), x) * by.of_block(scale + i * kFloatScalesAtOnce);
    }
  }

  /// total[i] = the sums of one row of each of kRows streams. A function of its own: what is called between would take
  /// the table's registers.
  template <int kRows>
  __attribute__((noinline)) void sum_row(int64_t row, int64_t apart, VecF (&total)[kRows]) const {
    const ByteLevels<kBits> levels(weight);
    const LaneScales by(weight);
    const auto* x = reinterpret_cast<const ByteX*>(packed_x + blocks_at(weight.cols));
    const float* x_scale = packed_x + kScalesAt;
    const uint8_t* packed = weight.packed + row * weight.row_bytes;
    const int64_t bytes_apart = apart * weight.row_bytes;
    VecF found[kRows] = {};
    for (int64_t col = 0, left = weight.cols; left > 0; left -= kDecodeQuantization.block, ++x_scale) {
      VecF sum[kRows] = {};
      const auto add = [&](int64_t cols) __attribute__((always_inline)) {
        add_block(sum, levels, by, packed, bytes_apart, scales + by.place_of(col), cols, *x);
        col += kByteBlock;
        packed += kByteBlock / 8 * kBits;
        ++x;
      };
      if (left >= kDecodeQuantization.block) {
#pragma GCC unroll 2
        for (int64_t b = 0; b < kByteBlocks; ++b) add(kByteBlock);
      } else {
        for (int64_t cols = left; cols > 0; cols -= kByteBlock) add(cols);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) found[i] += sum[i] * splat(*x_scale);
    }
    for (int i = 0; i < kRows; ++i) total[i] = found[i];
  }

  template <int kRows>
  void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int i = 0; i < kRows; ++i) find_float_scales(weight, row + r + i * apart, scales + i * kFloatScalesAtOnce);
      VecF total[kRows];
      sum_row(row + r, apart, total);
      for (int i = 0; i < kRows; ++i) totals[i][r] = total[i];
    }
  }

  VecF finish(int64_t, int64_t, VecF sums) const {
    return _mm512_scalef_ps(sums, splat(reinterpret_cast<const QuantizedHead*>(packed_x)->exponent));
  }
};

/// A block of a row that was looked up.
struct alignas(64) ByteBlock {
  uint8_t even[64], odd[64];
  float scale[16];
};

/// A kernel of joint_gemv.
template <int kBits>
struct ByteRows {
  const GroupedView& weight;
  const float* packed_x;
  int64_t x_floats;
  float* scales;
  ByteBlock* blocks;  // [kGemvRows, stride]
  Ahead ahead;

  static int64_t count(int64_t cols) { return (cols + kByteBlock - 1) / kByteBlock; }
  static int64_t stride(int64_t cols) { return scales_of(cols) * kByteBlocks + 1; }

  void open(int64_t first, int64_t rows) {
    const ByteLevels<kBits> levels(weight);
    const LaneScales by(weight);
    const int64_t cols = weight.cols, apart = stride(cols);
    Ahead next = ahead;
    next.start(weight.packed + (first + kGemvRows) * weight.row_bytes);
    for (int64_t i = 0; i < rows; ++i) {
      find_float_scales(weight, first + i, scales);
      const uint8_t* packed = weight.packed + (first + i) * weight.row_bytes;
      ByteBlock* block = blocks + i * apart;
      for (int64_t col = 0; col < cols; col += kByteBlock, packed += kByteBlock / 8 * kBits, ++block) {
        const __m512i pairs = levels.load(packed, cols - col);
        _mm512_store_si512(block->even, levels.even(pairs));
        _mm512_store_si512(block->odd, levels.odd(pairs));
        store(block->scale, by.of_block(scales + by.place_of(col)));
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

  Vec4 finish(int64_t t, Vec4 sums) const {
    const auto* head = reinterpret_cast<const QuantizedHead*>(packed_x + t * x_floats);
    return _mm_scalef_ps(sums, _mm_set1_ps(head->exponent));
  }
};

int64_t byte_gemv_floats(const GroupedView& weight, int64_t tokens) {
  const int64_t blocks = kGemvRows * ByteRows<4>::stride(weight.cols) * static_cast<int64_t>(sizeof(ByteBlock) / 4);
  return float_scales(weight) + (tokens == 1 ? 0 : blocks);
}

template <int kBits>
void byte_gemv_of(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  float* scales = work.memory;
  if (args.tokens == 1) return gemv_rows<4>(ByteKernel<kBits>{weight, work.packed_x, scales}, args, begin, end);
  auto* blocks = reinterpret_cast<ByteBlock*>(scales + float_scales(weight));
  joint_gemv(ByteRows<kBits>{weight, work.packed_x, byte_x_floats(weight), scales, blocks, Ahead(args.tokens, kBits)},
             args, begin, end);
}

void byte_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  (weight.bits == 3 ? byte_gemv_of<3> : byte_gemv_of<4>)(weight, args, work, begin, end);
}

constexpr Gemv<GroupedView> kByteGemv{
    .packed_x_floats = byte_x_floats, .pack_x = pack_byte_x, .memory_floats = byte_gemv_floats, .multiply = byte_gemv};

}  // namespace
}  // namespace hxq::kernels::cpu
