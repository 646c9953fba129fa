// Codebooks of integer levels on AVX-512 VNNI: the byte planes from the tables are multiplied as they are, by x in
// fixed point. One vpdpbusd does 64 products, where the float kernel converts and multiplies 16 at a time.
//
// Weights are exact. x is rounded to 16 bits below its largest |x|, as two signed bytes, or to 24 bits as three if the
// largest |x| is far above the others. Of the products of bytes the least, low byte of the code times low byte of x, is
// estimated with 128 for the code's byte. Where two bytes are taken the error of both is, in energy, at most -52 dB of
// |x|^2 times the mean square of the weights (see kLargestSpread); that of 256 levels for the weights is about -45 dB.
// The other sums are exact integers until they are put together in float.

#pragma once

#include "kernels/cpu/gemv_rows_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Beyond these the float kernels are faster, or sums might not fit 32 bits (2 * 255 * 128 * 4 for each block of 64).
constexpr int64_t kIntegerTokens = 3;
constexpr int64_t kIntegerCols = int64_t{1} << 19;

/// With two bytes the largest x^2 is at most this many times the mean: measured, the error of the estimate then stays
/// below -52 dB for codebooks whose largest level is at most 8 times the root of the weights' mean square.
constexpr float kLargestSpread = 512;

/// x of one token: x = (bytes[2] * 2^16 + bytes[1] * 2^8 + bytes[0]) / scale, the bytes of 64 columns next to each
/// other.
struct alignas(64) QuantizedBlock {
  int8_t byte[3][64];
};

/// What precedes the blocks. High bytes of codes are stored + 128; starting the sums at `start`, -128 times the sum of
/// each byte of x, takes that off again.
struct alignas(64) QuantizedHead {
  float scale_power;  ///< x was multiplied by 2 to this
  bool usable;        ///< false: x has an infinity or a NaN, or is too small for its scale to be a float
  bool spread;        ///< two bytes are enough
  alignas(64) int32_t start[3][16];
};

inline int64_t quantized_floats(int64_t cols) {
  return (static_cast<int64_t>(sizeof(QuantizedHead)) +
          blocks_of(cols) * static_cast<int64_t>(sizeof(QuantizedBlock))) /
         4;
}

/// Where 2 to the power of `quantization_power` is a float.
constexpr float kSmallestLargest = 0x1p-100f;

/// The p for which the largest |x| 2^p, rounded, has three signed bytes, that is at most 127 * 0x10101.
inline int quantization_power(float largest) {
  if (largest == 0) return 0;
  const int exponent = (__builtin_bit_cast(int32_t, largest) >> 23) - 127;
  const int power = 22 - exponent;
  return largest * __builtin_bit_cast(float, (power + 127) << 23) > 127.0f * 0x10101 ? power - 1 : power;
}

void quantize_x(const float* x, int64_t cols, float* packed_x) {
  auto* head = reinterpret_cast<QuantizedHead*>(packed_x);
  auto* block = reinterpret_cast<QuantizedBlock*>(head + 1);
  const auto x_at = [&](int64_t col) {
    return col + kLanes <= cols ? load(x + col) : col < cols ? load_first(x + col, cols - col) : VecF{};
  };
  __m512i largest_bits = _mm512_setzero_si512();  // magnitudes are ordered as their bits
  VecF squares = {};
  for (int64_t col = 0; col < cols; col += kLanes) {
    const VecF values = x_at(col);
    largest_bits = _mm512_max_epi32(largest_bits, _mm512_castps_si512(_mm512_abs_ps(values)));
    squares += values * values;
  }
  const float largest = __builtin_bit_cast(float, _mm512_reduce_max_epi32(largest_bits));
  head->usable = largest == 0 || (largest >= kSmallestLargest && largest <= __FLT_MAX__);
  head->spread = false;
  if (!head->usable) return;
  const float energy = sum_lanes(squares);
  const bool in_range = largest > 1e-15f && energy <= __FLT_MAX__;  // of float, squared
  head->spread = in_range && largest * largest * static_cast<float>(cols) <= kLargestSpread * energy;
  const int power = quantization_power(largest);
  const float scale = __builtin_bit_cast(float, (power + 127) << 23);
  head->scale_power = static_cast<float>(power);

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

/// Adds the products of 64 codes with the upper kBytes bytes of x: sum[i] has those of the code's high byte with byte i
/// of these and of its low byte with the next one.
template <int kBytes>
HXQ_ALWAYS_INLINE void multiply_bytes(__m512i (&sum)[kBytes], __m512i low, __m512i high, const QuantizedBlock& x) {
#pragma GCC unroll 4
  for (int i = 0; i < kBytes; ++i) {
    const __m512i byte = _mm512_load_si512(x.byte[3 - kBytes + i]);
    if (i > 0) sum[i - 1] = _mm512_dpbusd_epi32(sum[i - 1], low, byte);
    sum[i] = _mm512_dpbusd_epi32(sum[i], high, byte);
  }
}

/// `estimate`: the negative of what the low byte of codes adds to the lowest byte that was taken of x, / 2^8.
template <int kBytes>
HXQ_ALWAYS_INLINE VecF dequantize(const __m512i (&sum)[kBytes], __m512i estimate) {
  VecF total = {};
#pragma GCC unroll 4
  for (int i = kBytes - 1; i >= 0; --i) total = (total + _mm512_cvtepi32_ps(sum[i])) * 0x1p8f;
  return (total - _mm512_cvtepi32_ps(estimate)) * (kBytes == 2 ? 0x1p8f : 1.0f);
}

/// Adds a block of 64 columns, or (kMasked) of those that `keep` names, of kRows rows `apart` bytes from each other.
template <bool kMasked, int kRows, int kTokens, int kBytes>
HXQ_ALWAYS_INLINE void add_block(__m512i (&sum)[kRows][kTokens][kBytes], const ByteTable& low, const ByteTable& high,
                                 const uint8_t* index, int64_t apart, __mmask64 keep, const float* x, int64_t x_apart) {
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    const uint8_t* from = index + i * apart;
    _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);
    // Past the last column x is 0, so what index 0 stands for does not matter.
    const Indices found = indices_of(kMasked ? _mm512_maskz_loadu_epi8(keep, from) : _mm512_loadu_si512(from));
    const __m512i low_bytes = low.look_up<false>(found, keep), high_bytes = high.look_up<false>(found, keep);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      multiply_bytes(sum[i][t], low_bytes, high_bytes, *reinterpret_cast<const QuantizedBlock*>(x + t * x_apart));
    }
  }
}

/// One row of each of kRows streams `apart` bytes from each other; x of the tokens are `x_apart` floats apart.
template <int kRows, int kTokens, int kBytes>
HXQ_ALWAYS_INLINE void sum_integer_row(const ByteTable& low, const ByteTable& high, const uint8_t* index, int64_t apart,
                                       int64_t cols, const float* packed_x, int64_t x_apart,
                                       VecF (&total)[kTokens][kRows]) {
  const auto start = [&](int t, int i) {
    return _mm512_load_si512(reinterpret_cast<const QuantizedHead*>(packed_x + t * x_apart)->start[3 - kBytes + i]);
  };
  __m512i sum[kRows][kTokens][kBytes];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int byte = 0; byte < kBytes; ++byte) sum[i][t][byte] = start(t, byte);
    }
  }
  const float* x = packed_x + sizeof(QuantizedHead) / 4;
  int64_t col = 0;
  for (; col + kBlock <= cols; col += kBlock, x += sizeof(QuantizedBlock) / 4) {
    add_block<false>(sum, low, high, index + col, apart, ~__mmask64{0}, x, x_apart);
  }
  if (col < cols) {
    add_block<true>(sum, low, high, index + col, apart, _bzhi_u64(~0ull, static_cast<unsigned>(cols - col)), x,
                    x_apart);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) total[t][i] = dequantize(sum[i][t], start(t, 0));
  }
}

/// Integer dot products; `packed_x` as quantize_x makes it.
template <int kBytes>
struct IntegerKernel {
  template <int kRows, int kTokens>
  __attribute__((noinline)) static void sum(const CodebookView& weight, int64_t row, int64_t rows, int64_t apart,
                                            const float* packed_x, RowTotals<kRows, kTokens>& totals) {
    const ByteTable low(weight.integer_planes), high(weight.integer_planes + 256);
    const int64_t x_apart = quantized_floats(weight.cols);
    for (int64_t r = 0; r < rows; ++r) {
      VecF total[kTokens][kRows];
      sum_integer_row<kRows, kTokens, kBytes>(low, high, weight.indices + (row + r) * weight.cols, apart * weight.cols,
                                              weight.cols, packed_x, x_apart, total);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) totals[t][i][r] = total[t][i];
      }
    }
  }

  /// Both scales are powers of two, whose product may be out of float's range where the result is not.
  static VecF finish(const CodebookView& weight, const float* packed_x, int64_t t, VecF sums) {
    const auto* head = reinterpret_cast<const QuantizedHead*>(packed_x + t * quantized_floats(weight.cols));
    const VecF power = _mm512_getexp_ps(splat(weight.planes_scale)) - head->scale_power;
    return _mm512_scalef_ps(sums, power);
  }
};

template <int kBytes>
void integer_gemv_of(const CodebookView& weight, const LinearArgs& args, const float* packed_x, int64_t begin,
                     int64_t end) {
  switch (args.tokens) {
    case 1:
      return gemv_rows<IntegerKernel<kBytes>, 2, 1>(weight, args, packed_x, begin, end);
    case 2:
      return gemv_rows<IntegerKernel<kBytes>, 2, 2>(weight, args, packed_x, begin, end);
    case 3:
      return gemv_rows<IntegerKernel<kBytes>, 1, 3>(weight, args, packed_x, begin, end);
  }
}

/// How x of a token is taken.
enum class Taken { as_float, two_bytes, three_bytes };

Taken taken(const CodebookView& weight, const float* packed_x, int64_t t) {
  const auto* head = reinterpret_cast<const QuantizedHead*>(packed_x + t * quantized_floats(weight.cols));
  if (!head->usable) return Taken::as_float;
  return head->spread ? Taken::two_bytes : Taken::three_bytes;
}

/// A token's result does not depend on which others are computed with it: where they differ in how x is taken, one
/// after the other.
void integer_gemv(const CodebookView& weight, const LinearArgs& args, const float* packed_x, int64_t begin,
                  int64_t end) {
  const Taken first = taken(weight, packed_x, 0);
  for (int64_t t = 1; t < args.tokens; ++t) {
    if (taken(weight, packed_x, t) == first) continue;
    LinearArgs one = args;
    one.tokens = 1;
    for (int64_t i = 0; i < args.tokens; ++i, one.x += args.x_stride, one.y += args.y_stride) {
      integer_gemv(weight, one, packed_x + i * quantized_floats(weight.cols), begin, end);
    }
    return;
  }
  switch (first) {
    case Taken::as_float:
      return codebook_gemv_by_lookup(weight, args, packed_x, begin, end);
    case Taken::two_bytes:
      return integer_gemv_of<2>(weight, args, packed_x, begin, end);
    case Taken::three_bytes:
      return integer_gemv_of<3>(weight, args, packed_x, begin, end);
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
