#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/grouped/codec.h"
#include "codec/low_rank.h"

namespace hxq {

/// One weight matrix whose rows are cut into groups of adjacent weights, with a scale for each. What is large stays
/// where it is.
///
///     W[r, c] = scale_levels[scales[r, c / group]] * levels[index(r, c)]       one product of floats
///     W[r, c] = W[r, c] + sum over i of (U[r, i] s[i]) Vt[i, c]                summed in double, rounded once to float
///
/// Every scale is a number of a scale level, every product is finite, and the bits after a row's last index are zero:
/// the codec's `read` has checked it.
struct GroupedMatrix final : StoredMatrix {
  GroupedMatrix() : StoredMatrix(&kGroupedCodec) {}

  int64_t group = 0;                       ///< columns of a group, a multiple of 8; a row's last one may have fewer
  std::vector<float> levels = {};          ///< [k], a power of two, 8 to 256
  std::vector<float> scale_levels = {};    ///< [1 to 256]
  std::span<const std::byte> packed = {};  ///< [rows, row_bytes()]: indices of bits() each, lowest bits first
  std::span<const std::byte> scales = {};  ///< [rows, groups()]
  LowRankView low_rank = {};

  int bits() const noexcept { return static_cast<int>(std::bit_width(levels.size())) - 1; }
  int64_t row_bytes() const noexcept { return packed_bytes(cols, bits()); }
  int64_t groups() const noexcept { return groups_of(cols, group); }

  void decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept override;
  std::vector<float> weight_levels() const override;
  int64_t bytes_read() const noexcept override;

  /// Bytes that `count` indices of `bits` take.
  static constexpr int64_t packed_bytes(int64_t count, int bits) noexcept { return (count * bits + 7) / 8; }
  static constexpr int64_t groups_of(int64_t cols, int64_t group) noexcept { return cols / group + (cols % group > 0); }
};

}  // namespace hxq
