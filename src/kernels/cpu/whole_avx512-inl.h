// Codebooks of whole numbers on AVX-512 VNNI: the byte planes from the tables are multiplied as they are, by x in fixed
// point. One vpdpbusd does 64 products, where the float kernel converts and multiplies 16 at a time.
//
// Weights are exact. x is rounded to 24 bits below its largest |x|, as three signed bytes: an error of 2^-24 max |x|.
// Of the six products of bytes the least, low byte of the code times low byte of x, is estimated with 128 for the
// code's byte: an error of at most 2^-22, usually 2^-25, of max |w| max |x|, and none where x has 16 bits. The other
// sums are exact integers until they are put together in float.

#pragma once

#include "kernels/cpu/rows_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Beyond these the float kernels are faster, or sums might not fit 32 bits (2 * 255 * 128 * 4 for each block of 64).
constexpr int64_t kWholeTokens = 3;
constexpr int64_t kWholeCols = int64_t{1} << 19;

/// x of one token: x = (bytes[2] * 2^16 + bytes[1] * 2^8 + bytes[0]) / scale, the bytes of 64 columns next to each
/// other.
struct alignas(64) WholeBlock {
  int8_t byte[3][64];
};

/// What precedes the blocks. High bytes of codes are stored + 128; starting the sums at `start`, -128 times the sum of
/// each byte of x, takes that off again.
struct alignas(64) WholeHead {
  double inverse_scale;
  bool usable;  ///< false: x has an infinity or a NaN
  alignas(64) int32_t start[3][16];
};

inline int64_t whole_floats(int64_t cols) {
  return (static_cast<int64_t>(sizeof(WholeHead)) + blocks_of(cols) * static_cast<int64_t>(sizeof(WholeBlock))) / 4;
}

/// The power of two 2^p for which the largest |x| 2^p, rounded, has three signed bytes, that is at most 127 * 0x10101.
inline float whole_scale(float largest) {
  if (largest == 0) return 1;
  const int exponent = (__builtin_bit_cast(int32_t, largest) >> 23) - 127;  // -127 for subnormal numbers
  int power = 22 - exponent;
  if (power > 127) return 0x1p127f;
  const float scale = __builtin_bit_cast(float, (power + 127) << 23);
  return largest * scale > 127.0f * 0x10101 ? scale / 2 : scale;
}

void arrange_whole(const float* x, int64_t cols, float* arranged) {
  auto* head = reinterpret_cast<WholeHead*>(arranged);
  auto* block = reinterpret_cast<WholeBlock*>(head + 1);
  const auto x_at = [&](int64_t col) {
    return col + kLanes <= cols ? load(x + col) : col < cols ? load_first(x + col, cols - col) : VecF{};
  };
  __m512i largest_bits = _mm512_setzero_si512();  // magnitudes are ordered as their bits
  for (int64_t col = 0; col < cols; col += kLanes) {
    largest_bits = _mm512_max_epi32(largest_bits, _mm512_castps_si512(_mm512_abs_ps(x_at(col))));
  }
  const float largest = __builtin_bit_cast(float, _mm512_reduce_max_epi32(largest_bits));
  head->usable = largest <= __FLT_MAX__;
  if (!head->usable) return;
  const float scale = whole_scale(largest);
  head->inverse_scale = 1.0 / static_cast<double>(scale);

  __m512i start[3] = {};
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(128));
  for (int64_t col = 0; col < cols; col += kBlock, ++block) {
    for (int64_t part = 0; part < 4; ++part) {
      __m512i rest = _mm512_cvtps_epi32(x_at(col + part * kLanes) * scale);
      for (int byte = 0; byte < 3; ++byte) {
        const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(rest, 24), 24);
        _mm_store_si128(reinterpret_cast<__m128i*>(block->byte[byte] + part * kLanes), _mm512_cvtepi32_epi8(low));
        rest = _mm512_srai_epi32(_mm512_sub_epi32(rest, low), 8);
      }
    }
    for (int byte = 0; byte < 3; ++byte) {
      start[byte] = _mm512_dpbusd_epi32(start[byte], offset, _mm512_load_si512(block->byte[byte]));
    }
  }
  for (int byte = 0; byte < 3; ++byte) {
    _mm512_store_si512(head->start[byte], _mm512_sub_epi32(_mm512_setzero_si512(), start[byte]));
  }
}

/// Adds the products of 64 codes with x to sum[place - 1], place: that of the byte of the code + that of the byte of x.
HXQ_ALWAYS_INLINE void multiply_whole_block(__m512i (&sum)[3], __m512i low, __m512i high, const WholeBlock& x) {
  const __m512i x0 = _mm512_load_si512(x.byte[0]), x1 = _mm512_load_si512(x.byte[1]), x2 = _mm512_load_si512(x.byte[2]);
  sum[0] = _mm512_dpbusd_epi32(sum[0], low, x1);
  sum[1] = _mm512_dpbusd_epi32(sum[1], low, x2);
  sum[0] = _mm512_dpbusd_epi32(sum[0], high, x0);
  sum[1] = _mm512_dpbusd_epi32(sum[1], high, x1);
  sum[2] = _mm512_dpbusd_epi32(sum[2], high, x2);
}

/// `start`: that of the low byte of x.
HXQ_ALWAYS_INLINE VecF put_together(const __m512i (&sum)[3], __m512i start) {
  VecF total = _mm512_cvtepi32_ps(sum[2]) * 0x1p24f;
  total += _mm512_cvtepi32_ps(sum[1]) * 0x1p16f;
  total += _mm512_cvtepi32_ps(sum[0]) * 0x1p8f;
  return total - _mm512_cvtepi32_ps(start);
}

/// Adds a block of 64 columns, or (kMasked) of those that `keep` names, of kRows rows `apart` bytes from each other.
template <bool kMasked, int kRows, int kTokens>
HXQ_ALWAYS_INLINE void add_whole_block(__m512i (&sum)[kRows][kTokens][3], const Plane& low, const Plane& high,
                                       const uint8_t* index, int64_t apart, __mmask64 keep, const float* x,
                                       int64_t x_apart) {
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    const uint8_t* from = index + i * apart;
    _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);
    // Past the last column x is 0, so what index 0 stands for does not matter.
    const Indices found = indices_of(kMasked ? _mm512_maskz_loadu_epi8(keep, from) : _mm512_loadu_si512(from));
    const __m512i low_bytes = low.look_up<false>(found, keep), high_bytes = high.look_up<false>(found, keep);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      multiply_whole_block(sum[i][t], low_bytes, high_bytes, *reinterpret_cast<const WholeBlock*>(x + t * x_apart));
    }
  }
}

/// sums[t][i] of kRows <= 4 rows `apart` bytes from each other, before scales; x of the tokens are `x_apart` floats
/// apart.
template <int kRows, int kTokens>
__attribute__((noinline)) void sum_whole_rows(const uint8_t* planes, const uint8_t* index, int64_t apart, int64_t cols,
                                              const float* arranged, int64_t x_apart, float (&sums)[kTokens][4]) {
  const Plane low(planes + 512);
  const Plane high(planes + 768);
  const auto start = [&](int t, int byte) {
    return _mm512_load_si512(reinterpret_cast<const WholeHead*>(arranged + t * x_apart)->start[byte]);
  };
  __m512i sum[kRows][kTokens][3];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int byte = 0; byte < 3; ++byte) sum[i][t][byte] = start(t, byte);
    }
  }
  const float* x = arranged + sizeof(WholeHead) / 4;
  int64_t col = 0;
  for (; col + kBlock <= cols; col += kBlock, x += sizeof(WholeBlock) / 4) {
    add_whole_block<false>(sum, low, high, index + col, apart, ~__mmask64{0}, x, x_apart);
  }
  if (col < cols) {
    add_whole_block<true>(sum, low, high, index + col, apart, _bzhi_u64(~0ull, static_cast<unsigned>(cols - col)), x,
                          x_apart);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    VecF total[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) total[i] = put_together(sum[i][t], start(t, 0));
    _mm_storeu_ps(sums[t], sum_lanes_of_4(total[0], total[1], total[2], total[3]));
  }
}

/// Integer dot products; `arranged` as arrange_whole makes it.
struct WholeKernel {
  template <int kRows, int kTokens>
  static void sum(const CodebookView& weight, int64_t row, int64_t apart, const float* arranged,
                  float (&sums)[kTokens][4]) {
    const int64_t x_apart = whole_floats(weight.cols);
    sum_whole_rows<kRows, kTokens>(weight.planes, weight.indices + row * weight.cols, apart * weight.cols, weight.cols,
                                   arranged, x_apart, sums);
    for (int t = 0; t < kTokens; ++t) {
      // In double: the product of the scales may be out of float's range where the result is not.
      const double scale =
          reinterpret_cast<const WholeHead*>(arranged + t * x_apart)->inverse_scale * weight.planes_scale;
      for (int i = 0; i < kRows; ++i) sums[t][i] = static_cast<float>(sums[t][i] * scale);
    }
  }
};

void rows_by_whole(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin,
                   int64_t end) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    if (!reinterpret_cast<const WholeHead*>(arranged + t * whole_floats(weight.cols))->usable) {
      return codebook_rows_by_lookup(weight, args, arranged, begin, end);
    }
  }
  switch (args.tokens) {
    case 1:
      return multiply_rows<WholeKernel, 2, 1>(weight, args, arranged, begin, end);
    case 2:
      return multiply_rows<WholeKernel, 2, 2>(weight, args, arranged, begin, end);
    default:
      return multiply_rows<WholeKernel, 1, 3>(weight, args, arranged, begin, end);
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
