// Codebook matrices of bytes and few tokens on AVX-512 VBMI: the codebook stays in registers as byte planes. Measured:
// the byte permutes set the pace, then the conversion to float.

#pragma once

#include "kernels/cpu/gemv_rows_avx512-inl.h"
#include "kernels/cpu/integer_gemv_avx512-inl.h"
#include "kernels/cpu/lookup_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Weights of a block of 64, in the order of `column`.
struct Weights {
  VecF part0, part1, part2, part3;
};

/// Codes of 16 bits, IEEE binary16.
struct HalfTable {
  ByteTable low, high;

  HXQ_ALWAYS_INLINE explicit HalfTable(const CodebookView& weight)
      : low(weight.half_planes), high(weight.half_planes + 256) {}

  /// Column within a block that lane `lane` of part `part` holds: bytes are interleaved within 128 bits.
  static constexpr int64_t column(int64_t part, int64_t lane) {
    return part % 2 * 32 + lane / 8 * 16 + part / 2 * 8 + lane % 8;
  }

  /// Indices put so that the weights of part p are those of columns 16 p to 16 p + 15.
  HXQ_ALWAYS_INLINE static __m512i in_order(__m512i value) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), value);
  }

  /// In assembly, because the compiler would turn the load back into a permute.
  HXQ_ALWAYS_INLINE static VecF widen(const __m256i& codes) {
    VecF value;
    asm("vcvtph2ps %1, %0" : "=v"(value) : "m"(codes));
    return value;
  }

  template <bool kMasked>
  HXQ_ALWAYS_INLINE Weights look_up(__m512i value, __mmask64 keep) const {
    const Indices index = indices_of(value);
    const __m512i low_bytes = low.template look_up<kMasked>(index, keep);
    const __m512i high_bytes = high.template look_up<kMasked>(index, keep);
    // Through memory: a load brings the upper half down without a permute.
    const __m512i codes[2] = {_mm512_unpacklo_epi8(low_bytes, high_bytes), _mm512_unpackhi_epi8(low_bytes, high_bytes)};
    const auto* half = reinterpret_cast<const __m256i*>(codes);
    return {widen(half[0]), widen(half[1]), widen(half[2]), widen(half[3])};
  }
};

/// Codes of 32 bits: any float.
struct FloatTable {
  ByteTable byte0, byte1, byte2, byte3;

  HXQ_ALWAYS_INLINE explicit FloatTable(const CodebookView& weight)
      : byte0(weight.float_planes),
        byte1(weight.float_planes + 256),
        byte2(weight.float_planes + 512),
        byte3(weight.float_planes + 768) {}

  static constexpr int64_t column(int64_t part, int64_t lane) { return lane / 4 * 16 + part * 4 + lane % 4; }

  HXQ_ALWAYS_INLINE static __m512i in_order(__m512i value) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), value);
  }

  template <bool kMasked>
  HXQ_ALWAYS_INLINE Weights look_up(__m512i value, __mmask64 keep) const {
    const Indices index = indices_of(value);
    const __m512i b0 = byte0.template look_up<kMasked>(index, keep);
    const __m512i b1 = byte1.template look_up<kMasked>(index, keep);
    const __m512i b2 = byte2.template look_up<kMasked>(index, keep);
    const __m512i b3 = byte3.template look_up<kMasked>(index, keep);
    const __m512i low0 = _mm512_unpacklo_epi8(b0, b1), low1 = _mm512_unpackhi_epi8(b0, b1);
    const __m512i high0 = _mm512_unpacklo_epi8(b2, b3), high1 = _mm512_unpackhi_epi8(b2, b3);
    return {_mm512_castsi512_ps(_mm512_unpacklo_epi16(low0, high0)),
            _mm512_castsi512_ps(_mm512_unpackhi_epi16(low0, high0)),
            _mm512_castsi512_ps(_mm512_unpacklo_epi16(low1, high1)),
            _mm512_castsi512_ps(_mm512_unpackhi_epi16(low1, high1))};
  }
};

/// W[row .. row + rows, col .. col + cols), without outliers.
template <class Table>
void decode_rows_by(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                    int64_t stride) {
  const Table table(weight);
  const VecF scale = splat(weight.planes_scale);
  for (int64_t i = 0; i < rows; ++i) {
    const uint8_t* index = weight.indices + (row + i) * weight.cols + col;
    float* to = out + i * stride;
    for (int64_t c = 0; c < cols; c += kBlock) {
      const int64_t n = cols - c < kBlock ? cols - c : kBlock;
      const __mmask64 keep = _bzhi_u64(~0ull, static_cast<unsigned>(n));
      const Weights w = table.template look_up<false>(Table::in_order(_mm512_maskz_loadu_epi8(keep, index + c)), keep);
      const VecF parts[] = {w.part0 * scale, w.part1 * scale, w.part2 * scale, w.part3 * scale};
#pragma GCC unroll 4
      for (int64_t part = 0; part < 4; ++part) {
        const int64_t left = n - part * kLanes;
        if (left >= kLanes) {
          store(to + c + part * kLanes, parts[part]);
        } else if (left > 0) {
          store_first(to + c + part * kLanes, parts[part], left);
        }
      }
    }
  }
}

/// x times the scale of the codes, in the order in which weights come out of the table, zero past the last column:
/// [blocks, 4, 16].
template <class Table>
void pack_x_for(const float* x, int64_t cols, float scale, float* packed_x) {
  for (int64_t first = 0; first < cols; first += kBlock, packed_x += kBlock) {
    for (int64_t part = 0; part < 4; ++part) {
      for (int64_t lane = 0; lane < 16; ++lane) {
        const int64_t col = first + Table::column(part, lane);
        packed_x[part * 16 + lane] = col < cols ? x[col] * scale : 0.0f;
      }
    }
  }
}

/// Adds the products of a block with kTokens tokens, whose x are `floats` apart.
template <int kTokens>
HXQ_ALWAYS_INLINE void multiply_block(VecF (&sum)[kTokens][2], const Weights& w, const float* x, int64_t floats) {
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    sum[t][0] += w.part0 * load(x + t * floats);
    sum[t][1] += w.part1 * load(x + t * floats + 16);
    sum[t][0] += w.part2 * load(x + t * floats + 32);
    sum[t][1] += w.part3 * load(x + t * floats + 48);
  }
}

/// One row of each of kRows streams, `apart` bytes from each other, with kTokens tokens: added to total[t][i], over
/// whole blocks or (kMasked) over the first `cols` < 64 columns of one. Each stream is prefetched.
template <class Table, int kRows, int kTokens, bool kMasked>
HXQ_ALWAYS_INLINE void sum_row(const Table& table, const uint8_t* index, int64_t apart, int64_t cols, const float* x,
                               int64_t floats, VecF (&total)[kTokens][kRows]) {
  const __mmask64 keep = kMasked ? _bzhi_u64(~0ull, static_cast<unsigned>(cols)) : ~__mmask64{0};
  VecF sum[kRows][kTokens][2] = {};
  for (int64_t col = 0; col < cols; col += kBlock, x += kBlock) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = index + i * apart + col;
      _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);
      const __m512i value = kMasked ? _mm512_maskz_loadu_epi8(keep, from) : _mm512_loadu_si512(from);
      multiply_block<kTokens>(sum[i], table.template look_up<kMasked>(value, keep), x, floats);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) total[t][i] += sum[i][t][0] + sum[i][t][1];
  }
}

/// Sums of float products; `packed_x` as pack_x_for<Table> makes it.
template <class Table>
struct FloatKernel {
  template <int kRows, int kTokens>
  __attribute__((noinline)) static void sum(const CodebookView& weight, int64_t row, int64_t rows, int64_t apart,
                                            const float* packed_x, RowTotals<kRows, kTokens>& totals) {
    const Table table(weight);
    const int64_t floats = blocks_of(weight.cols) * kBlock;
    const int64_t whole = weight.cols / kBlock * kBlock;
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* index = weight.indices + (row + r) * weight.cols;
      VecF total[kTokens][kRows] = {};
      sum_row<Table, kRows, kTokens, false>(table, index, apart * weight.cols, whole, packed_x, floats, total);
      if (whole < weight.cols) {
        sum_row<Table, kRows, kTokens, true>(table, index + whole, apart * weight.cols, weight.cols - whole,
                                             packed_x + whole, floats, total);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) totals[t][i][r] = total[t][i];
      }
    }
  }

  static VecF finish(const CodebookView&, const float*, int64_t, VecF sums) { return sums; }
};

/// Up to 8 tokens at once with two tables, 2 with four, as registers allow.
void half_gemv(const CodebookView& weight, const LinearArgs& args, const float* packed_x, int64_t begin, int64_t end) {
  using Kernel = FloatKernel<HalfTable>;
  switch (args.tokens) {
    case 1:
      return gemv_rows<Kernel, 4, 1>(weight, args, packed_x, begin, end);
    case 2:
      return gemv_rows<Kernel, 4, 2>(weight, args, packed_x, begin, end);
    case 3:
      return gemv_rows<Kernel, 2, 3>(weight, args, packed_x, begin, end);
    case 4:
      return gemv_rows<Kernel, 2, 4>(weight, args, packed_x, begin, end);
    case 5:
      return gemv_rows<Kernel, 1, 5>(weight, args, packed_x, begin, end);
    case 6:
      return gemv_rows<Kernel, 1, 6>(weight, args, packed_x, begin, end);
    case 7:
      return gemv_rows<Kernel, 1, 7>(weight, args, packed_x, begin, end);
    default:
      return gemv_rows<Kernel, 1, 8>(weight, args, packed_x, begin, end);
  }
}

void float_gemv(const CodebookView& weight, const LinearArgs& args, const float* packed_x, int64_t begin, int64_t end) {
  using Kernel = FloatKernel<FloatTable>;
  LinearArgs part = args;
  for (int64_t left = args.tokens; left > 0; left -= 2) {
    if (left >= 2) {
      gemv_rows<Kernel, 2, 2>(weight, part, packed_x, begin, end);
    } else {
      gemv_rows<Kernel, 2, 1>(weight, part, packed_x, begin, end);
    }
    part.x += 2 * args.x_stride;
    part.y += 2 * args.y_stride;
    packed_x += 2 * blocks_of(weight.cols) * kBlock;
  }
}

/// The kernel for a call; best first.
enum class GemvKernel { integer, half, float32, lookup };

GemvKernel choose_gemv(const CodebookView& weight, int64_t tokens) {
  if (weight.index_bits != 8 || weight.planes_kind == LookupPlanes::Kind::none) return GemvKernel::lookup;
  if (weight.integer_levels && tokens <= kIntegerTokens && weight.cols <= kIntegerCols) return GemvKernel::integer;
  return weight.planes_kind == LookupPlanes::Kind::half ? GemvKernel::half : GemvKernel::float32;
}

int64_t packed_x_floats(const CodebookView& weight, int64_t tokens) {
  switch (choose_gemv(weight, tokens)) {
    case GemvKernel::integer:
      return quantized_floats(weight.cols);
    case GemvKernel::lookup:
      return 0;
    default:
      return blocks_of(weight.cols) * kBlock;
  }
}

void pack_x(const CodebookView& weight, const float* x, int64_t tokens, float* packed_x) {
  switch (choose_gemv(weight, tokens)) {
    case GemvKernel::integer:
      return quantize_x(x, weight.cols, packed_x);
    case GemvKernel::half:
      return pack_x_for<HalfTable>(x, weight.cols, weight.planes_scale, packed_x);
    default:
      return pack_x_for<FloatTable>(x, weight.cols, weight.planes_scale, packed_x);
  }
}

void decode_codebook(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                     int64_t stride) {
  if (weight.index_bits != 8 || weight.planes_kind == LookupPlanes::Kind::none) {
    return decode_codebook_by_lookup(weight, row, rows, col, cols, out, stride);
  }
  const bool half = weight.planes_kind == LookupPlanes::Kind::half;
  (half ? decode_rows_by<HalfTable> : decode_rows_by<FloatTable>)(weight, row, rows, col, cols, out, stride);
  for (int64_t i = 0; i < rows; ++i) assign_outliers(weight, row + i, col, cols, out + i * stride);
}

void codebook_gemv(const CodebookView& weight, const LinearArgs& args, const float* packed_x, int64_t begin,
                   int64_t end) {
  switch (choose_gemv(weight, args.tokens)) {
    case GemvKernel::integer:
      return integer_gemv(weight, args, packed_x, begin, end);
    case GemvKernel::half:
      return half_gemv(weight, args, packed_x, begin, end);
    case GemvKernel::float32:
      return float_gemv(weight, args, packed_x, begin, end);
    case GemvKernel::lookup:
      return codebook_gemv_by_lookup(weight, args, packed_x, begin, end);
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
