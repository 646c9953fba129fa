// Grouped matrices of every width and group, decoded to floats: their products are sums of exactly what the codec says.

#pragma once

#include "kernels/cpu/dense-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Indices that a group is a multiple of, and that begin at a whole byte.
constexpr int64_t kGroupedStep = 8;

/// The 8 * bits bits from `from` on, `left` bytes before the end of the matrix.
inline uint64_t load_bits(const uint8_t* from, int64_t left) {
  uint64_t bits = 0;
  if (left >= 8) {
    __builtin_memcpy(&bits, from, sizeof bits);
  } else {
    __builtin_memcpy(&bits, from, static_cast<size_t>(left > 0 ? left : 0));
  }
  return bits;
}

/// Kernels of integers take whole levels, and groups of a power of two, so that scales are known by the place in a
/// block, and of at least this.
constexpr int64_t kGroupColumns = 16;

inline bool has_integer_groups(const GroupedView& weight) {
  return weight.level_words && weight.group >= kGroupColumns && (weight.group & (weight.group - 1)) == 0;
}

/// The groups of blocks of columns, kGroups in each, or one of several blocks; group is a power of two.
template <int kGroups>
struct GroupCodes {
  int64_t log_group, groups;

  HXQ_ALWAYS_INLINE explicit GroupCodes(const GroupedView& weight)
      : log_group(__builtin_ctzll(weight.group)), groups(weight.groups) {}

  HXQ_ALWAYS_INLINE int64_t group_of(int64_t col) const { return col >> log_group; }

  /// The codes of the block at column `col` of a row with these codes, 0 for groups that are missing.
  void copy_codes(const uint8_t* row_codes, int64_t col, uint8_t (&memory)[kGroups]) const {
    const int64_t first = group_of(col);
    for (int64_t g = 0; g < kGroups; ++g) memory[g] = first + g < groups ? row_codes[first + g] : uint8_t{0};
  }

  /// The same where they are; copied to `memory` if groups are missing.
  HXQ_ALWAYS_INLINE const uint8_t* codes(const uint8_t* row_codes, int64_t col, uint8_t (&memory)[kGroups]) const {
    if (groups - group_of(col) >= kGroups) return row_codes + group_of(col);
    copy_codes(row_codes, col, memory);
    return memory;
  }
};

/// Levels of 8 columns times `scale`.
template <int kBits>
inline void put_step(const GroupedView& weight, uint64_t bits, float scale, float* out) {
  uint8_t index[kGroupedStep];
#pragma GCC unroll 8
  for (int i = 0; i < kGroupedStep; ++i) index[i] = static_cast<uint8_t>(bits >> (kBits * i) & ((1 << kBits) - 1));
#pragma GCC unroll 8
  for (int i = 0; i < kGroupedStep; ++i) out[i] = weight.levels[index[i]] * scale;
}

/// W[row, col .. col + cols); col is a multiple of 8.
template <int kBits>
void decode_grouped_row(const GroupedView& weight, int64_t row, int64_t col, int64_t cols, float* out) {
  const uint8_t* from = weight.packed + row * weight.row_bytes + col / 8 * kBits;
  const uint8_t* end = weight.packed + weight.rows * weight.row_bytes;
  const uint8_t* code = weight.scales + row * weight.groups + col / weight.group;
  int64_t group_left = weight.group - col % weight.group;
  for (int64_t c = 0; c < cols; c += kGroupedStep, from += kBits, group_left -= kGroupedStep) {
    if (group_left == 0) ++code, group_left = weight.group;
    const float scale = weight.scale_levels[*code];
    const uint64_t bits = load_bits(from, end - from);
    if (cols - c >= kGroupedStep) {
      put_step<kBits>(weight, bits, scale, out + c);
    } else {
      float rest[kGroupedStep];
      put_step<kBits>(weight, bits, scale, rest);
      __builtin_memcpy(out + c, rest, static_cast<size_t>(cols - c) * sizeof(float));
    }
  }
}

void decode_grouped(const GroupedView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                    int64_t stride) {
  constexpr decltype(&decode_grouped_row<3>) kByBits[] = {decode_grouped_row<3>, decode_grouped_row<4>,
                                                          decode_grouped_row<5>, decode_grouped_row<6>,
                                                          decode_grouped_row<7>, decode_grouped_row<8>};
  for (int64_t i = 0; i < rows; ++i) kByBits[weight.bits - 3](weight, row + i, col, cols, out + i * stride);
}

/// Decodes rows once, into memory, for any number of tokens.
struct DecodedRows : RowsInMemory<F32> {
  const GroupedView& weight;
  float* memory;

  static int64_t stride(int64_t columns) { return columns + 16; }  // no multiple of 4 KB, or rows share cache sets

  void open(int64_t first, int64_t rows) {
    decode_grouped(weight, first, rows, 0, cols, memory, stride(cols));
    set_rows(reinterpret_cast<const std::byte*>(memory), stride(cols) * 4, rows);
  }
};

void decoded_gemv(const GroupedView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  joint_gemv(DecodedRows{{args.x, args.x_stride, weight.cols}, weight, work.memory}, args, begin, end);
}

int64_t decoded_memory_floats(const GroupedView& weight, int64_t) {
  return kGemvRows * DecodedRows::stride(weight.cols);
}

constexpr Gemv<GroupedView> kDecodedGemv{.panel_tokens = 1,
                                         .packed_x_floats = nullptr,
                                         .pack_x = nullptr,
                                         .memory_floats = decoded_memory_floats,
                                         .multiply = decoded_gemv};

const Gemv<GroupedView>& decoded_gemv_for(const GroupedView&) { return kDecodedGemv; }

}  // namespace
}  // namespace hxq::kernels::cpu
