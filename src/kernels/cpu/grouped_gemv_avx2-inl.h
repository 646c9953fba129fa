// Decode rows times a grouped matrix whose levels are whole numbers, on AVX2: sums within a group are whole numbers,
// which are multiplied by the group's scale and added up in float. `Form`, made of a GroupedView, says how the levels
// of a block of columns are found and multiplied:
//     Part, pack_x              packed x of 256 columns, and what packs a row
//     kColumns, kBytes, kLanes  of a block: columns, bytes of indices, and where each lane's columns begin, in eighths
//     Levels, look_up           a block's levels, found from its indices where `cols` columns are left of the row
//     lane_products             what is called with Levels and a block of x: sums of products, by lane

#pragma once

#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/gemv_rows-inl.h"
#include "kernels/cpu/grouped_bytes_avx2-inl.h"
#include "kernels/cpu/grouped_words_avx2-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Bytes ahead of its reading that a stream of scales is asked for.
constexpr int64_t kScalePrefetch = 256;

/// The lanes of a block that have columns of group `group` of `groups`, a bit each.
constexpr int lanes_of(const int (&order)[8], int groups, int group) {
  int lanes = 0;
  for (int lane = 0; lane < 8; ++lane) lanes |= (order[lane] * groups / 8 == group) << lane;
  return lanes;
}

/// The scales of a block's lanes, in units of GroupedView::scale_unit.
template <class Form, int kGroups>
HXQ_ALWAYS_INLINE VecF lane_scales(const float* multiples, const uint8_t* code) {
  static_assert(kGroups == 1 || kGroups == 2 || kGroups == 4);
  const auto scale = [&](int g) __attribute__((always_inline)) { return _mm256_broadcast_ss(multiples + code[g]); };
  __m256 lanes = scale(0);
  if constexpr (kGroups > 1) lanes = _mm256_blend_ps(lanes, scale(1), lanes_of(Form::kLanes, kGroups, 1));
  if constexpr (kGroups > 2) {
    lanes = _mm256_blend_ps(lanes, scale(2), lanes_of(Form::kLanes, kGroups, 2));
    lanes = _mm256_blend_ps(lanes, scale(3), lanes_of(Form::kLanes, kGroups, 3));
  }
  return lanes;
}

/// One decode row: a kernel of gemv_rows.
template <class Form, int kGroups>
struct GroupKernel {
  using Part = typename Form::Part;
  static constexpr int64_t kColumns = Form::kColumns, kBytes = Form::kBytes;
  static constexpr int64_t kBlocks = kDecodeQuantization.block / kColumns;  // that share a scale of x

  const GroupedView& weight;
  const float* packed_x;

  /// The sums of a row of each of kRows streams.
  template <int kRows>
  HXQ_ALWAYS_INLINE void sum_row(int64_t row, int64_t apart, VecF (&found)[kRows]) const {
    const Form form(weight);
    const GroupCodes<kGroups> groups(weight);
    const float* multiples = weight.scale_multiples;
    const Part* part = first_part<Part>(packed_x);
    const uint8_t *from[kRows], *code[kRows];
    for (int i = 0; i < kRows; ++i) {
      from[i] = weight.packed + (row + i * apart) * weight.row_bytes;
      code[i] = weight.scales + (row + i * apart) * weight.groups;
      found[i] = VecF{};
    }
    int64_t col = 0;
    for (; weight.cols - col >= kDecodeQuantization.block; col += kDecodeQuantization.block, ++part) {
      VecF sum[kRows] = {};
      for (int i = 0; i < kRows; ++i) __builtin_prefetch(code[i] + kScalePrefetch);
#pragma GCC unroll 8
      for (int64_t b = 0; b < kBlocks; ++b) {
        const auto& x = part->block[b];
        const int64_t group = kGroups == 1 ? groups.group_of(col + b * kColumns) : b * kGroups;
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          if (b * kBytes % 64 < kBytes) __builtin_prefetch(from[i] + b * kBytes + kStreamPrefetch);
          const VecF product = lane_products(form.look_up(from[i] + b * kBytes, kColumns), x);
          const VecF scale = lane_scales<Form, kGroups>(multiples, code[i] + group);
          sum[i] += product * scale;
        }
      }
      for (int i = 0; i < kRows; ++i) {
        found[i] += sum[i] * splat(part->scale);
        from[i] += kBlocks * kBytes;
        if (kGroups > 1) code[i] += kBlocks * kGroups;
      }
    }
    if (col == weight.cols) return;
    VecF sum[kRows] = {};
    for (const auto* x = part->block; col < weight.cols; col += kColumns, ++x) {
      for (int i = 0; i < kRows; ++i) {
        uint8_t rest[kGroups];
        const uint8_t* codes = groups.codes(weight.scales + (row + i * apart) * weight.groups, col, rest);
        const VecF product = lane_products(form.look_up(from[i], weight.cols - col), *x);
        sum[i] += product * lane_scales<Form, kGroups>(multiples, codes);
        from[i] += kBytes;
      }
    }
    for (int i = 0; i < kRows; ++i) found[i] += sum[i] * splat(part->scale);
  }

  template <int kRows>
  __attribute__((noinline)) void sum(int64_t row, int64_t rows, int64_t apart, RowTotals<kRows>& totals) const {
    for (int64_t r = 0; r < rows; ++r) {
      VecF found[kRows];
      sum_row<kRows>(row + r, apart, found);
      for (int i = 0; i < kRows; ++i) totals[i][r] = found[i];
    }
  }

  VecF finish(int64_t, int64_t, VecF sums) const { return finish_sums(packed_x, sums); }
};

/// A block of a row that was looked up.
template <class Form>
struct alignas(32) GroupBlock {
  typename Form::Levels level;
  VecF scale;
};

/// Several decode rows: a kernel of joint_gemv that looks rows up once, into memory.
template <class Form, int kGroups>
struct GroupRows {
  using Part = typename Form::Part;
  using Block = GroupBlock<Form>;
  static constexpr int64_t kColumns = Form::kColumns, kBytes = Form::kBytes;
  static constexpr int64_t kBlocks = kDecodeQuantization.block / kColumns;  // that share a scale of x

  const GroupedView& weight;
  const float* packed_x;
  int64_t x_floats;
  Block* blocks;  // [kGemvRows, stride]

  static int64_t stride(int64_t cols) { return parts_of(cols) * kBlocks + 1; }  // no multiple of 4 KB

  void open(int64_t first, int64_t rows) {
    const Form form(weight);
    const GroupCodes<kGroups> groups(weight);
    for (int64_t i = 0; i < rows; ++i) {
      const uint8_t* code = weight.scales + (first + i) * weight.groups;
      const uint8_t* from = weight.packed + (first + i) * weight.row_bytes;
      Block* block = blocks + i * stride(weight.cols);
      for (int64_t col = 0; col < weight.cols; col += kColumns, from += kBytes, ++block) {
        __builtin_prefetch(from + kPrefetch);
        block->level = form.look_up(from, weight.cols - col);
        uint8_t rest[kGroups];
        block->scale = lane_scales<Form, kGroups>(weight.scale_multiples, groups.codes(code, col, rest));
      }
    }
  }

  template <int kTokens>
  HXQ_ALWAYS_INLINE void sum(int64_t t, RowSums<kTokens>& sums) const {
    const int64_t all = (weight.cols + kColumns - 1) / kColumns, apart = stride(weight.cols);
    VecF found[kTokens][kGemvRows] = {};
    for (int64_t first = 0; first < all; first += kBlocks) {
      const int64_t n = all - first < kBlocks ? all - first : kBlocks;
#pragma GCC unroll 3
      for (int k = 0; k < kTokens; ++k) {
        const Part& part = first_part<Part>(packed_x + (t + k) * x_floats)[first / kBlocks];
        VecF sum[kGemvRows] = {};
        for (int64_t b = 0; b < n; ++b) {
          const auto& x = part.block[b];
#pragma GCC unroll 4
          for (int i = 0; i < kGemvRows; ++i) {
            const Block& block = blocks[i * apart + first + b];
            sum[i] += lane_products(block.level, x) * block.scale;
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kGemvRows; ++i) found[k][i] += sum[i] * splat(part.scale);
      }
    }
#pragma GCC unroll 3
    for (int k = 0; k < kTokens; ++k) {
#pragma GCC unroll 4
      for (int i = 0; i < kGemvRows; ++i) sums[k][i] = found[k][i];
    }
  }

  Vec4 finish(int64_t t, Vec4 sums) const { return finish_sums(packed_x + t * x_floats, sums); }
};

template <class Form>
int64_t group_x_floats(const GroupedView& weight) {
  return packed_floats<typename Form::Part>(weight.cols);
}

template <class Form>
int64_t group_gemv_floats(const GroupedView& weight, int64_t tokens) {
  using Rows = GroupRows<Form, 1>;
  const int64_t blocks = kGemvRows * Rows::stride(weight.cols);
  return tokens == 1 ? 0 : blocks * static_cast<int64_t>(sizeof(typename Rows::Block) / sizeof(float));
}

template <class Form, int kGroups>
void group_gemv_of(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin,
                   int64_t end) {
  if (args.tokens == 1) return gemv_rows<2>(GroupKernel<Form, kGroups>{weight, work.packed_x}, args, begin, end);
  using Rows = GroupRows<Form, kGroups>;
  auto* blocks = reinterpret_cast<typename Rows::Block*>(work.memory);
  joint_gemv(Rows{weight, work.packed_x, group_x_floats<Form>(weight), blocks}, args, begin, end);
}

template <class Form>
void group_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  constexpr int kMost = static_cast<int>(Form::kColumns / kGroupColumns);
  const int64_t groups = weight.group < Form::kColumns ? Form::kColumns / weight.group : 1;
  const auto multiply = groups == kMost ? group_gemv_of<Form, kMost>
                        : groups == 2   ? group_gemv_of<Form, 2>
                                        : group_gemv_of<Form, 1>;
  multiply(weight, args, work, begin, end);
}

template <class Form>
constexpr Gemv<GroupedView> kGroupGemv{.panel_tokens = 1,
                                       .packed_x_floats = group_x_floats<Form>,
                                       .pack_x = pack_token<GroupedView, Form::pack_x>,
                                       .memory_floats = group_gemv_floats<Form>,
                                       .multiply = group_gemv<Form>};

const Gemv<GroupedView>& choose_grouped_gemv(const GroupedView& weight) {
  if (!has_integer_groups(weight)) return kDecodedGemv;
  if (weight.level_bytes) {
    return weight.bits == 3   ? kGroupGemv<ByteForm<3>>
           : weight.bits == 4 ? kGroupGemv<ByteForm<4>>
                              : kGroupGemv<ByteForm<8>>;
  }
  return weight.bits == 5 ? kGroupGemv<WordForm<5>> : weight.bits == 6 ? kGroupGemv<WordForm<6>> : kDecodedGemv;
}

}  // namespace
}  // namespace hxq::kernels::cpu
