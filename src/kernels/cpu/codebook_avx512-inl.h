// Codebook matrices of bytes and few tokens on AVX-512 VBMI: the codebook stays in registers as byte planes, vpermb looks
// up 64 weights at once. Measured: the byte permutes (one port) set the pace, then the conversion to float.

#pragma once

#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/vec_avx512-inl.h"

// The compiler keeps tables and sums in registers only if everything is one function early on.
#define HXQ_ALWAYS_INLINE __attribute__((always_inline)) inline

namespace hxq::kernels::cpu {
namespace {

/// 64 indices and the masks that choose among four tables of 64 bytes. vpermb ignores the upper two bits.
struct Indices {
  __m512i value;
  __mmask64 bit6;
  __mmask64 bit7;
  __mmask64 both;
};

HXQ_ALWAYS_INLINE Indices masks_of(__m512i value) {
  const __mmask64 bit7 = _mm512_movepi8_mask(value);
  const __mmask64 bit6 = _mm512_movepi8_mask(_mm512_add_epi8(value, value));
  return {value, bit6, bit7, _kand_mask64(bit6, bit7)};
}

/// One byte of every codeword.
struct Plane {
  __m512i part0, part1, part2, part3;

  HXQ_ALWAYS_INLINE explicit Plane(const uint8_t* bytes)
      : part0(in_register(bytes)),
        part1(in_register(bytes + 64)),
        part2(in_register(bytes + 128)),
        part3(in_register(bytes + 192)) {}

  /// Opaque to the compiler, which would otherwise read the tables from memory in the inner loop.
  HXQ_ALWAYS_INLINE static __m512i in_register(const uint8_t* bytes) {
    __m512i value = _mm512_load_si512(bytes);
    asm volatile("" : "+v"(value));
    return value;
  }

  template <bool kMasked>
  HXQ_ALWAYS_INLINE __m512i look_up(const Indices& index, __mmask64 keep) const {
    __m512i found = _mm512_permutexvar_epi8(index.value, part0);
    found = _mm512_mask_permutexvar_epi8(found, index.bit6, index.value, part1);
    found = _mm512_mask_permutexvar_epi8(found, index.bit7, index.value, part2);
    found = _mm512_mask_permutexvar_epi8(found, index.both, index.value, part3);
    return kMasked ? _mm512_maskz_mov_epi8(keep, found) : found;
  }
};

/// Weights of a block of 64, in the order of `column`.
struct Weights {
  VecF part0, part1, part2, part3;
};

/// Codes of 16 bits, IEEE binary16.
struct HalfTable {
  Plane low, high;

  HXQ_ALWAYS_INLINE explicit HalfTable(const uint8_t* planes) : low(planes), high(planes + 256) {}

  /// Column within a block that lane `lane` of part `part` holds: bytes are interleaved within 128 bits.
  static constexpr int64_t column(int64_t part, int64_t lane) {
    return part % 2 * 32 + lane / 8 * 16 + part / 2 * 8 + lane % 8;
  }

  /// In assembly, because the compiler would turn the load back into a permute.
  HXQ_ALWAYS_INLINE static VecF widen(const __m256i& codes) {
    VecF value;
    asm("vcvtph2ps %1, %0" : "=v"(value) : "m"(codes));
    return value;
  }

  template <bool kMasked>
  HXQ_ALWAYS_INLINE Weights look_up(__m512i value, __mmask64 keep) const {
    const Indices index = masks_of(value);
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
  Plane byte0, byte1, byte2, byte3;

  HXQ_ALWAYS_INLINE explicit FloatTable(const uint8_t* planes) : byte0(planes), byte1(planes + 256), byte2(planes + 512), byte3(planes + 768) {}

  static constexpr int64_t column(int64_t part, int64_t lane) { return lane / 4 * 16 + part * 4 + lane % 4; }

  template <bool kMasked>
  HXQ_ALWAYS_INLINE Weights look_up(__m512i value, __mmask64 keep) const {
    const Indices index = masks_of(value);
    const __m512i b0 = byte0.template look_up<kMasked>(index, keep);
    const __m512i b1 = byte1.template look_up<kMasked>(index, keep);
    const __m512i b2 = byte2.template look_up<kMasked>(index, keep);
    const __m512i b3 = byte3.template look_up<kMasked>(index, keep);
    const __m512i low0 = _mm512_unpacklo_epi8(b0, b1), low1 = _mm512_unpackhi_epi8(b0, b1);
    const __m512i high0 = _mm512_unpacklo_epi8(b2, b3), high1 = _mm512_unpackhi_epi8(b2, b3);
    return {_mm512_castsi512_ps(_mm512_unpacklo_epi16(low0, high0)), _mm512_castsi512_ps(_mm512_unpackhi_epi16(low0, high0)),
            _mm512_castsi512_ps(_mm512_unpacklo_epi16(low1, high1)), _mm512_castsi512_ps(_mm512_unpackhi_epi16(low1, high1))};
  }
};

constexpr int64_t kBlock = 64;

inline int64_t blocks_of(int64_t cols) { return (cols + kBlock - 1) / kBlock; }

/// x in the order in which weights come out of the table, zero past the last column. [blocks, 4, 16]
template <class Table>
void arrange_for(const float* x, int64_t cols, float* arranged) {
  for (int64_t first = 0; first < cols; first += kBlock, arranged += kBlock) {
    for (int64_t part = 0; part < 4; ++part) {
      for (int64_t lane = 0; lane < 16; ++lane) {
        const int64_t col = first + Table::column(part, lane);
        arranged[part * 16 + lane] = col < cols ? x[col] : 0.0f;
      }
    }
  }
}

/// Lane sums of four vectors. The order of additions is the same in all four.
inline __m128 sum_lanes_of_4(VecF a, VecF b, VecF c, VecF d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 four = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
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

/// Products of kRows <= 4 rows, `apart` bytes from each other, with kTokens tokens: sums[t][i], before the scale, over
/// whole blocks or (kMasked) over the first `cols` < 64 columns of one. Rows far apart are separate streams, which draw
/// more bandwidth from one core than a single stream; each is prefetched.
template <class Table, int kRows, int kTokens, bool kMasked>
__attribute__((noinline)) void sum_rows(const uint8_t* planes, const uint8_t* index, int64_t apart, int64_t cols,
                                        const float* x, int64_t floats, float (&sums)[kTokens][4]) {
  constexpr int64_t kPrefetch = 2048;
  const __mmask64 keep = kMasked ? _bzhi_u64(~0ull, static_cast<unsigned>(cols)) : ~__mmask64{0};
  const Table table(planes);
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
    VecF total[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) total[i] = sum[i][t][0] + sum[i][t][1];
    _mm_storeu_ps(sums[t], sum_lanes_of_4(total[0], total[1], total[2], total[3]));
  }
}

/// Rows begin, begin + 1, ... each together with those `apart` further on.
template <class Table, int kRows, int kTokens>
void stream_rows(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t first, int64_t begin,
                 int64_t apart, int64_t end) {
  const int64_t floats = blocks_of(weight.cols) * kBlock;
  const int64_t whole = weight.cols / kBlock * kBlock;
  const float* x = arranged + first * floats;
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* index = weight.indices + row * weight.cols;
    float sums[kTokens][4] = {};
    float rest[kTokens][4] = {};
    if (whole > 0) {
      sum_rows<Table, kRows, kTokens, false>(weight.planes, index, apart * weight.cols, whole, x, floats, sums);
    }
    if (whole < weight.cols) {
      sum_rows<Table, kRows, kTokens, true>(weight.planes, index + whole, apart * weight.cols, weight.cols - whole,
                                            x + whole, floats, rest);
    }
    for (int i = 0; i < kRows; ++i) {
      const int64_t r = row + i * apart;
      for (int t = 0; t < kTokens; ++t) {
        const float correction = outlier_correction(weight, r, args.x + (first + t) * args.x_stride);
        put(args, first + t, r, (sums[t][i] + rest[t][i]) * weight.planes_scale + correction);
      }
    }
  }
}

template <class Table, int kRows, int kTokens>
void block_tokens(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t first, int64_t begin,
                  int64_t end) {
  const int64_t apart = (end - begin) / kRows;
  stream_rows<Table, kRows, kTokens>(weight, args, arranged, first, begin, apart, begin + apart);
  stream_rows<Table, 1, kTokens>(weight, args, arranged, first, begin + apart * kRows, 0, end);
}

/// Up to 8 tokens at once with two tables, 4 with four, as registers allow.
void rows_by_half(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin, int64_t end) {
  const auto run = [&](auto function) { function(weight, args, arranged, int64_t{0}, begin, end); };
  switch (args.tokens) {
    case 1: return run(block_tokens<HalfTable, 4, 1>);
    case 2: return run(block_tokens<HalfTable, 4, 2>);
    case 3: return run(block_tokens<HalfTable, 2, 3>);
    case 4: return run(block_tokens<HalfTable, 2, 4>);
    case 5: return run(block_tokens<HalfTable, 1, 5>);
    case 6: return run(block_tokens<HalfTable, 1, 6>);
    case 7: return run(block_tokens<HalfTable, 1, 7>);
    default: return run(block_tokens<HalfTable, 1, 8>);
  }
}

void rows_by_float(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < args.tokens; t += 2) {
    if (t + 2 <= args.tokens) {
      block_tokens<FloatTable, 2, 2>(weight, args, arranged, t, begin, end);
    } else {
      block_tokens<FloatTable, 2, 1>(weight, args, arranged, t, begin, end);
    }
  }
}

int64_t arranged_floats(const CodebookView& weight) {
  return weight.planes_kind == LookupPlanes::Kind::none || weight.index_bits != 8 ? 0 : blocks_of(weight.cols) * kBlock;
}

void arrange(const CodebookView& weight, const float* x, float* arranged) {
  if (weight.planes_kind == LookupPlanes::Kind::half) {
    arrange_for<HalfTable>(x, weight.cols, arranged);
  } else {
    arrange_for<FloatTable>(x, weight.cols, arranged);
  }
}

void codebook_rows(const CodebookView& weight, const LinearArgs& args, const float* arranged, int64_t begin, int64_t end) {
  if (arranged_floats(weight) == 0) return codebook_rows_by_pieces(weight, args, begin, end);
  if (weight.planes_kind == LookupPlanes::Kind::half) {
    rows_by_half(weight, args, arranged, begin, end);
  } else {
    rows_by_float(weight, args, arranged, begin, end);
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
