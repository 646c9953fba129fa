// Codebook matrices of bytes on AVX-512 VBMI: the codebook stays in registers as byte planes. Measured: the byte
// permutes set the pace, then the conversion to float.

#pragma once

#include "kernels/cpu/gemv_rows-inl.h"
#include "kernels/cpu/integer_gemv_avx512-inl.h"
#include "kernels/cpu/lookup_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Weights of a block of 64, in the order of `column`.
struct Weights {
  VecF part0, part1, part2, part3;
};

struct WidenHalf {
  /// In assembly, because the compiler would turn the load back into a permute.
  HXQ_ALWAYS_INLINE static VecF widen(const __m256i& codes) {
    VecF value;
    asm("vcvtph2ps %1, %0" : "=v"(value) : "m"(codes));
    return value;
  }
};

struct WidenInteger {
  HXQ_ALWAYS_INLINE static VecF widen(const __m256i& codes) { return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(codes)); }
};

/// Levels of 16 bits, that `Widen` makes floats of.
template <class Widen>
struct WordTable {
  ByteTable low, high;

  HXQ_ALWAYS_INLINE explicit WordTable(const CodebookView& weight) : low(weight.planes), high(weight.planes + 256) {}

  /// Column within a block that lane `lane` of part `part` holds: bytes are interleaved within 128 bits.
  static constexpr int64_t column(int64_t part, int64_t lane) {
    return part % 2 * 32 + lane / 8 * 16 + part / 2 * 8 + lane % 8;
  }

  /// Indices put so that the weights of part p are those of columns 16 p to 16 p + 15.
  HXQ_ALWAYS_INLINE static __m512i in_order(__m512i value) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), value);
  }

  template <bool kMasked>
  HXQ_ALWAYS_INLINE Weights look_up(__m512i value, __mmask64 keep) const {
    const Indices index = indices_of(value);
    const __m512i low_bytes = low.template look_up<kMasked>(index, keep);
    const __m512i high_bytes = high.template look_up<kMasked>(index, keep);
    // Through memory: a load brings the upper half down without a permute.
    const __m512i codes[2] = {_mm512_unpacklo_epi8(low_bytes, high_bytes), _mm512_unpackhi_epi8(low_bytes, high_bytes)};
    const auto* half = reinterpret_cast<const __m256i*>(codes);
    return {Widen::widen(half[0]), Widen::widen(half[1]), Widen::widen(half[2]), Widen::widen(half[3])};
  }
};

using HalfTable = WordTable<WidenHalf>;
using IntegerTable = WordTable<WidenInteger>;

/// Levels of 32 bits: any float.
struct FloatTable {
  ByteTable byte0, byte1, byte2, byte3;

  HXQ_ALWAYS_INLINE explicit FloatTable(const CodebookView& weight)
      : byte0(weight.planes), byte1(weight.planes + 256), byte2(weight.planes + 512), byte3(weight.planes + 768) {}

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
      const __mmask64 keep = first_bytes(n);
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

/// x times the scale of the levels, in the order in which they come out of the table, zero past the last column:
/// [blocks, 4, 16].
template <class Table>
void pack_x(const CodebookView& weight, const float* x, float* packed_x) {
  for (int64_t first = 0; first < weight.cols; first += kBlock, packed_x += kBlock) {
    for (int64_t part = 0; part < 4; ++part) {
      for (int64_t lane = 0; lane < 16; ++lane) {
        const int64_t col = first + Table::column(part, lane);
        packed_x[part * 16 + lane] = col < weight.cols ? x[col] * weight.planes_scale : 0.0f;
      }
    }
  }
}

int64_t packed_x_floats(const CodebookView& weight) { return blocks_of(weight.cols) * kBlock; }

HXQ_ALWAYS_INLINE void add_products(VecF (&sum)[2], const Weights& w, const float* x) {
  sum[0] += w.part0 * load(x);
  sum[1] += w.part1 * load(x + 16);
  sum[0] += w.part2 * load(x + 32);
  sum[1] += w.part3 * load(x + 48);
}

/// One decode row.
template <class Table>
struct TableKernel {
  const CodebookView& weight;
  const float* packed_x;

  /// A block of a row of each of kRows streams, `apart` bytes from each other. Each stream is prefetched.
  template <int kRows, bool kMasked>
  HXQ_ALWAYS_INLINE static void add_block(VecF (&sum)[kRows][2], const Table& table, const uint8_t* index,
                                          int64_t apart, __mmask64 keep, const float* x) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = index + i * apart;
      _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);
      const __m512i value = kMasked ? _mm512_maskz_loadu_epi8(keep, from) : _mm512_loadu_si512(from);
      add_products(sum[i], table.template look_up<kMasked>(value, keep), x);
    }
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    const Table table(weight);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* index = weight.indices + (row + r) * weight.cols;
      VecF sum[kRows][2] = {};
      int64_t col = 0;
      for (; col + kBlock <= weight.cols; col += kBlock) {
        add_block<kRows, false>(sum, table, index + col, apart * weight.cols, ~__mmask64{0}, packed_x + col);
      }
      if (col < weight.cols) {
        add_block<kRows, true>(sum, table, index + col, apart * weight.cols, first_bytes(weight.cols - col),
                               packed_x + col);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) totals[i][r] = sum[i][0] + sum[i][1];
    }
  }

  static VecF finish(int64_t, int64_t, VecF sums) { return sums; }
};

/// A kernel of joint_gemv: levels are looked up once, into memory, in the order of packed x.
template <class Table>
struct TableRows : RowsInMemory<F32> {
  const CodebookView& weight;
  float* levels;  // [kGemvRows, stride]
  Ahead ahead;

  static int64_t stride(const CodebookView& weight) { return packed_x_floats(weight) + 16; }  // no multiple of 4 KB

  void open(int64_t first, int64_t rows) {
    const Table table(weight);
    const uint8_t* index = weight.indices + first * weight.cols;
    const int64_t width = weight.cols, apart = stride(weight);
    Ahead next = ahead;
    next.start(index + kGemvRows * width);
    for (int64_t i = 0; i < rows; ++i, index += width) {
      float* to = levels + i * apart;
      for (int64_t col = 0; col < width; col += kBlock, to += kBlock) {
        const __mmask64 keep = first_bytes(width - col);
        const Weights w = table.template look_up<true>(_mm512_maskz_loadu_epi8(keep, index + col), keep);
        store(to, w.part0);
        store(to + 16, w.part1);
        store(to + 32, w.part2);
        store(to + 48, w.part3);
        next.step(2);
      }
    }
    ahead = next;
    set_rows(reinterpret_cast<const std::byte*>(levels), apart * 4, rows);
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) {
    Ahead next = ahead;
    sum_with<kTokens>(t, sums, [&] { next.step(); });
    ahead = next;
  }
};

template <class Table>
int64_t table_memory_floats(const CodebookView& weight, int64_t tokens) {
  return tokens == 1 ? 0 : OutlierSums::floats(tokens) + kGemvRows * TableRows<Table>::stride(weight);
}

/// kStreams: as many as registers allow.
template <class Table, int kStreams>
void table_gemv(const CodebookView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  if (args.tokens == 1) {
    gemv_rows<kStreams>(TableKernel<Table>{weight, work.packed_x}, args, begin, end);
    return add_outliers(weight, args, begin, end);
  }
  const int64_t floats = packed_x_floats(weight);
  float* rows = work.memory + OutlierSums::floats(args.tokens);
  joint_gemv(TableRows<Table>{{work.packed_x, floats, floats}, weight, rows, Ahead(args.tokens)}, weight, args,
             work.x_columns, begin, end, work.memory);
}

template <class Table, int kStreams>
constexpr Gemv<CodebookView> kTableGemv{.panel_tokens = 1,
                                        .packed_x_floats = packed_x_floats,
                                        .pack_x = pack_token<CodebookView, pack_x<Table>>,
                                        .memory_floats = table_memory_floats<Table>,
                                        .multiply = table_gemv<Table, kStreams>};

bool has_planes(const CodebookView& weight) {
  return weight.index_bits == 8 && weight.planes_kind != LookupPlanes::Kind::none;
}

const Gemv<CodebookView>& choose_gemv(const CodebookView& weight) {
  if (!has_planes(weight)) return kLookupGemv;
  if (weight.integer_levels) return kIntegerGemv;
  if (weight.planes_kind == LookupPlanes::Kind::half) return kTableGemv<HalfTable, 4>;
  return kTableGemv<FloatTable, 2>;
}

void decode_codebook(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                     int64_t stride) {
  if (!has_planes(weight)) return decode_codebook_by_lookup(weight, row, rows, col, cols, out, stride);
  const auto decode = weight.integer_levels                            ? decode_rows_by<IntegerTable>
                      : weight.planes_kind == LookupPlanes::Kind::half ? decode_rows_by<HalfTable>
                                                                       : decode_rows_by<FloatTable>;
  decode(weight, row, rows, col, cols, out, stride);
  assign_outliers(weight, row, rows, col, cols, out, stride);
}

}  // namespace
}  // namespace hxq::kernels::cpu
