// Decode rows times a codebook whose levels lie in segments (LookupPlanes::segments), on AVX2: vpshufb finds
// the bytes of a segment's base and slope among 32, and vpmaddubsw makes base + slope * step of them, the level as a
// 16-bit integer. x is rounded to 13 bits. A lane's sum of 256 columns is exact in 32 bits in two halves: 16 * 32767 *
// 4095 < 2^31.

#pragma once

#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/gemv_rows-inl.h"
#include "kernels/cpu/packed_x_avx2-inl.h"

namespace hxq::kernels::cpu {
namespace {

int64_t segment_x_floats(const CodebookView& weight) { return packed_floats<WordXPart>(weight.cols); }

void pack_segment_x(const CodebookView& weight, const float* x, float* packed_x) {
  pack_word_x(x, weight.cols, weight.planes_scale, packed_x);
}

struct SegmentTable {
  __m256i slope[2], base_low[2], base_high[2];  // of the first and the last 16 segments
  __m256i step_mask;
  __m128i step_shift;

  HXQ_ALWAYS_INLINE explicit SegmentTable(const CodebookView& weight) {
    const uint8_t* from = weight.segment_planes;
    for (auto* plane : {&slope, &base_low, &base_high}) {
      for (int half = 0; half < 2; ++half, from += 16) {
        (*plane)[half] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
        keep_in_register((*plane)[half]);
      }
    }
    step_mask = _mm256_set1_epi8(static_cast<char>(7 << weight.segment_shift));
    step_shift = _mm_cvtsi32_si128(weight.segment_shift);
  }

  HXQ_ALWAYS_INLINE WordLevels look_up(__m256i index) const {
    // An index is a segment's number, five bits, and a step of three. vpshufb gives 0 where bit 7 is set: after adding
    // 0x70 in the last 16 segments, after subtracting 16 in the first.
    const __m256i segment = _mm256_and_si256(_mm256_srli_epi16(index, 3), _mm256_set1_epi8(31));
    const __m256i first = _mm256_add_epi8(segment, _mm256_set1_epi8(0x70));
    const __m256i last = _mm256_sub_epi8(segment, _mm256_set1_epi8(16));
    const auto find = [&](const __m256i(&plane)[2]) __attribute__((always_inline)) {
      return _mm256_or_si256(_mm256_shuffle_epi8(plane[0], first), _mm256_shuffle_epi8(plane[1], last));
    };
    const __m256i step = _mm256_and_si256(_mm256_sll_epi16(index, step_shift), step_mask);
    const __m256i rise = find(slope), low = find(base_low), high = find(base_high);
    const __m256i one = _mm256_set1_epi8(1), zero = _mm256_setzero_si256();
    // rise * step + low * 1 of bytes, and 256 * high.
    const __m256i level0 = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(rise, low), _mm256_unpacklo_epi8(step, one));
    const __m256i level1 = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(rise, low), _mm256_unpackhi_epi8(step, one));
    return {_mm256_add_epi16(level0, _mm256_unpacklo_epi8(zero, high)),
            _mm256_add_epi16(level1, _mm256_unpackhi_epi8(zero, high))};
  }
};

/// Indices of up to 32 columns, 0 past the last.
HXQ_ALWAYS_INLINE __m256i load_indices(const uint8_t* index, int64_t cols) {
  if (cols >= kWordBlock) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  alignas(32) uint8_t padded[kWordBlock] = {};
  __builtin_memcpy(padded, index, static_cast<size_t>(cols));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(padded));
}

/// Sums of products of up to 256 columns.
struct SegmentSums {
  __m256i first = _mm256_setzero_si256(), second = _mm256_setzero_si256();

  HXQ_ALWAYS_INLINE void add(const WordLevels& level, const WordBlock& x) {
    first = add_pair_products(first, level.first, _mm256_load_si256(reinterpret_cast<const __m256i*>(x.first)));
    second = add_pair_products(second, level.second, _mm256_load_si256(reinterpret_cast<const __m256i*>(x.second)));
  }

  HXQ_ALWAYS_INLINE VecF total() const { return _mm256_cvtepi32_ps(first) + _mm256_cvtepi32_ps(second); }
};

/// One decode row: a kernel of gemv_rows.
struct SegmentKernel {
  const CodebookView& weight;
  const float* packed_x;

  /// The sums of a row of each of kRows streams.
  template <int kRows>
  HXQ_ALWAYS_INLINE void sum_row(int64_t row, int64_t apart, VecF (&total)[kRows]) const {
    const SegmentTable table(weight);
    const WordXPart* part = first_part<WordXPart>(packed_x);
    const uint8_t* index[kRows];
    for (int i = 0; i < kRows; ++i) {
      index[i] = weight.indices + (row + i * apart) * weight.cols;
      total[i] = VecF{};
    }
    for (int64_t left = weight.cols; left > 0; left -= kDecodeQuantization.block, ++part) {
      for (int i = 0; i < kRows; ++i) {
        SegmentSums found;
        const auto add = [&](int64_t b, int64_t n) __attribute__((always_inline)) {
          found.add(table.look_up(load_indices(index[i], n)), part->block[b]);
          index[i] += kWordBlock;
        };
        if (left >= kDecodeQuantization.block) {
#pragma GCC unroll 8
          for (int64_t b = 0; b < kWordBlocks; ++b) {
            if (b % 2 == 0) __builtin_prefetch(index[i] + kStreamPrefetch);
            add(b, kWordBlock);
          }
        } else {
          for (int64_t b = 0; b * kWordBlock < left; ++b) add(b, left - b * kWordBlock);
        }
        total[i] += found.total() * splat(part->scale);
      }
    }
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    for (int64_t r = 0; r < rows; ++r) {
      VecF total[kRows];
      sum_row<kRows>(row + r, apart, total);
      for (int i = 0; i < kRows; ++i) totals[i][r] = total[i];
    }
  }

  VecF finish(int64_t, int64_t, VecF sums) const { return finish_sums(packed_x, sums); }
};

/// Several decode rows: a kernel of joint_gemv that looks rows up once, into memory.
struct SegmentRows {
  const CodebookView& weight;
  const float* packed_x;
  int64_t x_floats;
  WordBlock* blocks;  // [kGemvRows, stride]

  static int64_t stride(int64_t cols) { return parts_of(cols) * kWordBlocks + 1; }  // no multiple of 4 KB

  const WordXPart* parts(int64_t t) const { return first_part<WordXPart>(packed_x + t * x_floats); }

  void open(int64_t first, int64_t rows) {
    const SegmentTable table(weight);
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t* index = weight.indices + (first + i) * weight.cols;
      WordBlock* block = blocks + i * stride(weight.cols);
      for (int64_t col = 0; col < weight.cols; col += kWordBlock, ++block) {
        __builtin_prefetch(index + col + kPrefetch);
        table.look_up(load_indices(index + col, weight.cols - col)).store(*block);
      }
    }
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) const {
    const int64_t all = (weight.cols + kWordBlock - 1) / kWordBlock, apart = stride(weight.cols);
    VecF found[kTokens][kGemvRows] = {};
    for (int64_t first = 0; first < all; first += kWordBlocks) {
      const int64_t n = all - first < kWordBlocks ? all - first : kWordBlocks;
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) {
        const WordBlock* block = blocks + i * apart + first;
        SegmentSums of[kTokens];
        for (int64_t b = 0; b < n; ++b) {
          const WordLevels level = WordLevels::load(block[b]);
#pragma GCC unroll 2
          for (int k = 0; k < kTokens; ++k) of[k].add(level, parts(t + k)[first / kWordBlocks].block[b]);
        }
#pragma GCC unroll 2
        for (int k = 0; k < kTokens; ++k) {
          found[k][i] += of[k].total() * splat(parts(t + k)[first / kWordBlocks].scale);
        }
      }
    }
#pragma GCC unroll 2
    for (int k = 0; k < kTokens; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) sums[k][i] = found[k][i];
    }
  }

  Vec4 finish(int64_t t, Vec4 sums) const { return finish_sums(packed_x + t * x_floats, sums); }
};

int64_t segment_gemv_floats(const CodebookView& weight, int64_t tokens) {
  if (tokens == 1) return 0;
  const int64_t rows = kGemvRows * SegmentRows::stride(weight.cols) * static_cast<int64_t>(sizeof(WordBlock) / 4);
  return OutlierSums::floats(tokens) + rows;
}

void segment_gemv(const CodebookView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin,
                  int64_t end) {
  if (args.tokens == 1) {
    gemv_rows<2>(SegmentKernel{weight, work.packed_x}, args, begin, end);
    return add_outliers(weight, args, begin, end);
  }
  auto* blocks = reinterpret_cast<WordBlock*>(work.memory + OutlierSums::floats(args.tokens));
  const SegmentRows rows{weight, work.packed_x, segment_x_floats(weight), blocks};
  joint_gemv(rows, weight, args, work.x_columns, begin, end, work.memory);
}

constexpr Gemv<CodebookView> kSegmentGemv{.panel_tokens = 1,
                                          .packed_x_floats = segment_x_floats,
                                          .pack_x = pack_token<CodebookView, pack_segment_x>,
                                          .memory_floats = segment_gemv_floats,
                                          .multiply = segment_gemv};

const Gemv<CodebookView>& choose_gemv(const CodebookView& weight) {
  return weight.segment_planes && weight.index_bits == 8 ? kSegmentGemv : kLookupGemv;
}

}  // namespace
}  // namespace hxq::kernels::cpu
