// Decode rows times a grouped matrix of 3 to 6 bits whose levels are whole numbers (GroupedView::whole_levels), on
// AVX-512 VBMI and VNNI. Two vpermb bring the indices of 128 columns to words, vpermw or vpermi2w looks levels up, and
// vpdpwssd multiplies them with x, rounded to 13 bits as in integer_gemv_avx512-inl.h. A lane has columns of one group:
// its sum is multiplied by the group's scale and added up in float. Weights stay exact.

#pragma once

#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/grouped_levels_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kWordBlock = 128;            // columns
constexpr int64_t kWordPair = 2 * kWordBlock;  // two blocks share a scale of x
static_assert(kWordPair == kDecodeQuantization.block);

/// The column of word `word` of part `part` in a block of kGroups groups, 1 where a group is a block or more. Lane i
/// has eight columns of group i % kGroups, so that the scales of the groups, repeated, are those of the lanes.
template <int kGroups>
constexpr int word_column(int part, int word) {
  const int lane = word / 2, first = lane % kGroups * (128 / kGroups) + lane / kGroups * 8;
  return first + part / 2 * 2 + word % 2 * 4 + part % 2;
}

/// 128 columns of x, in the order of word_column.
struct alignas(64) WordX {
  int16_t part[4][32];
};

/// Packed x of one token: QuantizedHead, the scales of x, pairs of blocks.
int64_t word_x_floats(const GroupedView& weight) {
  return blocks_at(weight.cols) + scales_of(weight.cols) * 2 * static_cast<int64_t>(sizeof(WordX) / sizeof(float));
}

inline const WordX* first_word_x(const GroupedView& weight, const float* packed_x) {
  return reinterpret_cast<const WordX*>(packed_x + blocks_at(weight.cols));
}

template <int kGroups>
void pack_word_x_of(const GroupedView& weight, const float* x, float* packed_x) {
  alignas(64) int16_t column[4][32];
  for (int part = 0; part < 4; ++part) {
    for (int word = 0; word < 32; ++word) column[part][word] = static_cast<int16_t>(word_column<kGroups>(part, word));
  }
  auto* block = reinterpret_cast<WordX*>(packed_x + blocks_at(weight.cols));
  __m512i quarter[4];
  round_x<kWordBlock>(x, weight.cols, weight.scale_unit, packed_x, [&](int64_t col, __m512i first, __m512i second) {
    const int64_t at = col % kWordBlock / 32;
    quarter[at] = first;
    quarter[at + 1] = second;
    if (at == 0) return;
    for (int part = 0; part < 4; ++part) {
      const __m512i from = _mm512_load_si512(column[part]);
      const __m512i lower = _mm512_permutex2var_epi16(quarter[0], from, quarter[1]);
      const __m512i upper = _mm512_permutex2var_epi16(quarter[2], from, quarter[3]);
      const __mmask32 is_upper = _mm512_test_epi16_mask(from, _mm512_set1_epi16(64));
      _mm512_store_si512(block->part[part], _mm512_mask_blend_epi16(is_upper, lower, upper));
    }
    ++block;
  });
}

template <int kBits>
constexpr int64_t kPairBytes = kWordPair / 8 * kBits;

/// The indices of the last columns of a row, fewer than a pair of blocks, and zeros.
template <int kBits>
struct LastIndices {
  alignas(64) uint8_t bytes[kPairBytes<kBits>] = {};

  LastIndices(const uint8_t* from, int64_t cols) {
    __builtin_memcpy(bytes, from, static_cast<size_t>((cols * kBits + 7) / 8));
  }
};

/// Where the indices of two parts are: bytes [2 * word, 2 * word + 2) of the result hold both, that of the even column
/// `shift` bits up, that of the odd one kBits further. With what is before them in a byte they always fit 16 bits.
template <int kBits, int kGroups>
struct WordPlaces {
  alignas(64) uint8_t byte[2][64];
  alignas(64) uint16_t shift[4][32];

  constexpr WordPlaces() : byte(), shift() {
    for (int part = 0; part < 4; ++part) {
      for (int word = 0; word < 32; ++word) {
        const int bit = kBits * word_column<kGroups>(part / 2 * 2, word);
        byte[part / 2][2 * word] = static_cast<uint8_t>(bit / 8);
        byte[part / 2][2 * word + 1] = static_cast<uint8_t>(bit / 8 + 1);
        shift[part][word] = static_cast<uint16_t>(bit % 8 + part % 2 * kBits);
      }
    }
  }
};

template <int kBits, int kGroups>
constexpr WordPlaces<kBits, kGroups> kWordPlaces = {};

/// Levels of a block, in the order of word_column.
struct WordsFound {
  __m512i part[4];
};

/// The sums of a block's lanes.
HXQ_ALWAYS_INLINE VecF word_products(const WordsFound& found, const WordX& x) {
  __m512i sum = _mm512_madd_epi16(found.part[0], _mm512_load_si512(x.part[0]));
#pragma GCC unroll 3
  for (int i = 1; i < 4; ++i) sum = _mm512_dpwssd_epi32(sum, found.part[i], _mm512_load_si512(x.part[i]));
  return _mm512_cvtepi32_ps(sum);
}

template <int kBits, int kGroups>
struct WordLevels {
  /// Two indices in each word, and whatever is around them.
  struct Spread {
    __m512i parts[2];
  };

  __m512i byte[2][2], table0, table1;

  HXQ_ALWAYS_INLINE explicit WordLevels(const GroupedView& weight)
      : table0(ByteTable::in_register(reinterpret_cast<const uint8_t*>(weight.whole_levels))),
        table1(ByteTable::in_register(reinterpret_cast<const uint8_t*>(weight.whole_levels + 32))) {
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const auto first = static_cast<char>(b * kBlockBytes % 64);
        byte[b][i] = _mm512_add_epi8(_mm512_load_si512(kWordPlaces<kBits, kGroups>.byte[i]), _mm512_set1_epi8(first));
        keep_in_register(byte[b][i]);
      }
    }
  }

  /// Of block kBlock of a pair.
  template <int kBlock>
  HXQ_ALWAYS_INLINE Spread spread(const uint8_t* pair) const {
    return {{bytes_of<kBlock>(pair, byte[kBlock][0]), bytes_of<kBlock>(pair, byte[kBlock][1])}};
  }

  HXQ_ALWAYS_INLINE WordsFound look_up(const Spread& spread) const {
    return {
        {level(spread.parts[0], 0), level(spread.parts[0], 1), level(spread.parts[1], 2), level(spread.parts[1], 3)}};
  }

 private:
  static constexpr int64_t kBlockBytes = kWordBlock / 8 * kBits;

  /// The 64 bytes that `byte` names, counted from the 64 on in which the block begins.
  template <int kBlock>
  HXQ_ALWAYS_INLINE static __m512i bytes_of(const uint8_t* pair, __m512i byte) {
    constexpr int64_t kFirst = kBlock * kBlockBytes / 64 * 64, kLast = ((kBlock + 1) * kBlockBytes - 1) / 64 * 64;
    const auto load = [&](int64_t at) __attribute__((always_inline)) {
      if (at + 64 <= kPairBytes<kBits>) return _mm512_loadu_si512(pair + at);
      return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair + at)));
    };
    if (kFirst == kLast) return _mm512_permutexvar_epi8(byte, load(kFirst));
    return _mm512_permutex2var_epi8(load(kFirst), byte, load(kLast));
  }

  HXQ_ALWAYS_INLINE __m512i level(__m512i both, int part) const {
    const auto& shift = kWordPlaces<kBits, kGroups>.shift[part];
    const bool same = kBits % 2 == 0;  // in all words
    const __m512i index = same ? _mm512_srli_epi16(both, shift[0]) : _mm512_srlv_epi16(both, _mm512_load_si512(shift));
    return kBits == 6 ? _mm512_permutex2var_epi16(table0, index, table1) : _mm512_permutexvar_epi16(index, table0);
  }
};

/// Floats for the scales of a row.
inline int64_t float_scales(const GroupedView& weight) {
  const int64_t covered = scales_of(weight.cols) * kWordPair / weight.group;
  return ((covered > weight.groups ? covered : weight.groups) + 63) / 64 * 64;
}

/// The scales of a row as floats, in units of GroupedView::scale_unit; past the last any finite numbers. They come out
/// of registers, 64 at once: a load for each would take as long as the products.
inline void find_float_scales(const GroupedView& weight, int64_t row, float* scale) {
  const uint8_t* code = weight.scales + row * weight.groups;
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const int64_t all = float_scales(weight);
  for (int64_t g = 0; g < all; g += 64) {
    _mm_prefetch(code + g + kScalePrefetch, _MM_HINT_T0);
    const __m512i codes = _mm512_maskz_loadu_epi8(g < weight.groups ? first_bytes(weight.groups - g) : 0, code + g);
    const Indices index = indices_of(_mm512_permutexvar_epi32(order, codes));
    __m512i plane[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto part = [&](int at) { return _mm512_load_si512(weight.scale_planes + 256 * i + at); };
      const __m512i lower = _mm512_permutex2var_epi8(part(0), index.value, part(64));
      const __m512i upper = _mm512_permutex2var_epi8(part(128), index.value, part(192));
      plane[i] = _mm512_mask_blend_epi8(index.bit7, lower, upper);
    }
    const __m512i low0 = _mm512_unpacklo_epi8(plane[0], plane[1]), low1 = _mm512_unpackhi_epi8(plane[0], plane[1]);
    const __m512i high0 = _mm512_unpacklo_epi8(plane[2], plane[3]), high1 = _mm512_unpackhi_epi8(plane[2], plane[3]);
    _mm512_store_si512(scale + g, _mm512_unpacklo_epi16(low0, high0));
    _mm512_store_si512(scale + g + 16, _mm512_unpackhi_epi16(low0, high0));
    _mm512_store_si512(scale + g + 32, _mm512_unpacklo_epi16(low1, high1));
    _mm512_store_si512(scale + g + 48, _mm512_unpackhi_epi16(low1, high1));
  }
}

/// The scales of a block's lanes: those of its groups, repeated.
template <int kGroups>
HXQ_ALWAYS_INLINE VecF lane_scales(const float* scale) {
  if constexpr (kGroups == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(scale));
  if constexpr (kGroups == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(scale));
  if constexpr (kGroups == 2) {
    double both;
    __builtin_memcpy(&both, scale, sizeof both);
    return _mm512_castpd_ps(_mm512_set1_pd(both));
  }
  return splat(*scale);
}

/// Rows at once: with four streams instead of two, memory was read a sixth slower.
constexpr int kWordRows = 2;

/// One decode row.
template <int kBits, int kGroups>
struct WordKernel {
  using Levels = WordLevels<kBits, kGroups>;

  const GroupedView& weight;
  const float* packed_x;
  float* scales;  // [kWordRows, float_scales]

  /// sum[i] += the products of block kBlock of row i; scale: of the first row's groups. The rows take each step
  /// together: the core looks only so far ahead for work that need not wait.
  template <int kBlock, int kRows>
  HXQ_ALWAYS_INLINE static void add_block(VecF (&sum)[kRows], const Levels& levels, StreamBytes packed,
                                          const float* scale, int64_t scales_apart, const WordX& x) {
    typename Levels::Spread spread[kRows];
    WordsFound found[kRows];
#pragma GCC unroll 2
    for (int i = 0; i < kRows; ++i) spread[i] = levels.template spread<kBlock>(packed[i]);
#pragma GCC unroll 2
    for (int i = 0; i < kRows; ++i) found[i] = levels.look_up(spread[i]);
#pragma GCC unroll 2
    for (int i = 0; i < kRows; ++i) {
      sum[i] += word_products(found[i], x) * lane_scales<kGroups>(scale + i * scales_apart);
    }
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    const Levels levels(weight);
    const int64_t cols = weight.cols, scales_apart = float_scales(weight);
    const int log_group = __builtin_ctzll(weight.group);
    for (int64_t r = 0; r < rows; ++r) {
      for (int i = 0; i < kRows; ++i) find_float_scales(weight, row + r + i * apart, scales + i * scales_apart);
      StreamBytes packed{weight.packed + (row + r) * weight.row_bytes, apart * weight.row_bytes};
      const WordX* x = first_word_x(weight, packed_x);
      const float* x_scale = packed_x + kScalesAt;
      VecF total[kRows] = {};
      int64_t col = 0;
      for (; cols - col >= kWordPair; col += kWordPair, packed.first += kPairBytes<kBits>, x += 2) {
        VecF sum[kRows] = {};
        add_block<0>(sum, levels, packed, scales + (col >> log_group), scales_apart, x[0]);
        add_block<1>(sum, levels, packed, scales + ((col + kWordBlock) >> log_group), scales_apart, x[1]);
        const VecF by = splat(*x_scale++);
#pragma GCC unroll 2
        for (int i = 0; i < kRows; ++i) {
          total[i] += sum[i] * by;
#pragma GCC unroll 4
          for (int64_t at = 0; at < kPairBytes<kBits>; at += 64) {
            _mm_prefetch(packed[i] + at + kStreamPrefetch, _MM_HINT_T0);
          }
        }
      }
      if (col < cols) {
#pragma GCC unroll 2
        for (int i = 0; i < kRows; ++i) {
          const LastIndices<kBits> last(packed[i], cols - col);
          const float* scale = scales + i * scales_apart;
          VecF sum[1] = {};
          add_block<0>(sum, levels, {last.bytes, 0}, scale + (col >> log_group), 0, x[0]);
          if (cols - col > kWordBlock) {
            add_block<1>(sum, levels, {last.bytes, 0}, scale + ((col + kWordBlock) >> log_group), 0, x[1]);
          }
          total[i] += sum[0] * splat(*x_scale);
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i) totals[i][r] = total[i];
    }
  }

  VecF finish(int64_t, int64_t, VecF sums) const { return with_exponent(packed_x, sums); }
};

/// A block of a row that was looked up.
struct alignas(64) WordBlock {
  WordsFound level;
  VecF scale;
};

/// A kernel of joint_gemv.
template <int kBits, int kGroups>
struct WordRows {
  const GroupedView& weight;
  const float* packed_x;
  float* scales;      // [float_scales]
  WordBlock* blocks;  // [kGemvRows, stride]
  Ahead ahead;

  static int64_t stride(int64_t cols) { return scales_of(cols) * 2 + 1; }  // no multiple of 4 KB

  void open(int64_t first, int64_t rows) {
    const WordLevels<kBits, kGroups> levels(weight);
    const int64_t cols = weight.cols;
    const int log_group = __builtin_ctzll(weight.group);
    Ahead next = ahead;
    next.start(weight.packed + (first + kGemvRows) * weight.row_bytes);
    for (int64_t i = 0; i < rows; ++i) {
      find_float_scales(weight, first + i, scales);
      const uint8_t* packed = weight.packed + (first + i) * weight.row_bytes;
      WordBlock* block = blocks + i * stride(cols);
      const auto put = [&](const uint8_t* pair, int64_t col) {
        const float* second = scales + ((col + kWordBlock) >> log_group);
        block[0] = {levels.look_up(levels.template spread<0>(pair)), lane_scales<kGroups>(scales + (col >> log_group))};
        block[1] = {levels.look_up(levels.template spread<1>(pair)), lane_scales<kGroups>(second)};
        block += 2;
      };
      int64_t col = 0;
      for (; cols - col >= kWordPair; col += kWordPair, packed += kPairBytes<kBits>) {
        put(packed, col);
        next.step();
        next.step();
      }
      if (col < cols) put(LastIndices<kBits>(packed, cols - col).bytes, col);
    }
    ahead = next;
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) {
    const int64_t all = (weight.cols + kWordBlock - 1) / kWordBlock, apart = stride(weight.cols);
    const int64_t x_floats = word_x_floats(weight);
    Ahead next = ahead;
    VecF found[kTokens][kGemvRows] = {};
    for (int64_t b = 0, s = 0; b < all; b += 2, ++s) {
      const int64_t n = all - b < 2 ? 1 : 2;
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) {
        const WordBlock* block = blocks + i * apart + b;
#pragma GCC unroll 3
        for (int k = 0; k < kTokens; ++k) {
          const float* packed = packed_x + (t + k) * x_floats;
          const WordX* x = first_word_x(weight, packed) + b;
          VecF sum = {};
          for (int64_t j = 0; j < n; ++j) sum += word_products(block[j].level, x[j]) * block[j].scale;
          found[k][i] += sum * splat(packed[kScalesAt + s]);
        }
      }
      for (int64_t j = 0; j < 4; ++j) next.step();
    }
#pragma GCC unroll 3
    for (int k = 0; k < kTokens; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) sums[k][i] = found[k][i];
    }
    ahead = next;
  }

  Vec4 finish(int64_t t, Vec4 sums) const { return with_exponent(packed_x + t * word_x_floats(weight), sums); }
};

int64_t word_gemv_floats(const GroupedView& weight, int64_t tokens) {
  if (tokens == 1) return kWordRows * float_scales(weight);
  const auto floats = static_cast<int64_t>(sizeof(WordBlock) / sizeof(float));
  return float_scales(weight) + kGemvRows * WordRows<6, 1>::stride(weight.cols) * floats;
}

template <int kBits, int kGroups>
void word_gemv_of(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  if (args.tokens == 1) {
    return gemv_rows<kWordRows>(WordKernel<kBits, kGroups>{weight, work.packed_x, work.memory}, args, begin, end);
  }
  auto* blocks = reinterpret_cast<WordBlock*>(work.memory + float_scales(weight));
  const Ahead ahead(args.tokens, kBits);
  joint_gemv(WordRows<kBits, kGroups>{weight, work.packed_x, work.memory, blocks, ahead}, args, begin, end);
}

/// Calls `run.template operator()<groups of a block>()`.
template <class Run>
void with_word_groups(const GroupedView& weight, Run run) {
  if (weight.group == 16) return run.template operator()<8>();
  if (weight.group == 32) return run.template operator()<4>();
  weight.group == 64 ? run.template operator()<2>() : run.template operator()<1>();
}

void pack_word_x(const GroupedView& weight, const float* x, float* packed_x) {
  with_word_groups(weight, [&]<int kGroups>() { pack_word_x_of<kGroups>(weight, x, packed_x); });
}

void word_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  with_word_groups(weight, [&]<int kGroups>() {
    const auto multiply = weight.bits == 3   ? word_gemv_of<3, kGroups>
                          : weight.bits == 4 ? word_gemv_of<4, kGroups>
                          : weight.bits == 5 ? word_gemv_of<5, kGroups>
                                             : word_gemv_of<6, kGroups>;
    multiply(weight, args, work, begin, end);
  });
}

constexpr Gemv<GroupedView> kWordGemv{.panel_tokens = 1,
                                      .packed_x_floats = word_x_floats,
                                      .pack_x = pack_token<GroupedView, pack_word_x>,
                                      .memory_floats = word_gemv_floats,
                                      .multiply = word_gemv};

}  // namespace
}  // namespace hxq::kernels::cpu
