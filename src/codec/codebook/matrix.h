#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/codebook/codec.h"
#include "codec/low_rank.h"

namespace hxq {

/// How the indices of a codebook matrix are laid out in memory. See docs/format.md.
enum class IndexLayout : uint8_t {
  u8,        ///< one byte each, [rows, cols / d]
  u16,       ///< two bytes each, little-endian, [rows, cols / d]
  packed12,  ///< flat over the whole matrix, two indices in three bytes
};

/// Outliers of one matrix: a value replaces the weight that the codebook gives at (row, col). Rows are short in many
/// matrices and have less than one each, so that where a row's begin would take more memory.
struct Sidecar {
  std::vector<uint32_t> row = {};  // [n], ascending
  std::vector<uint32_t> col = {};  // [n], ascending within a row
  std::vector<float> value = {};   // [n]

  /// The first outlier of rows from `from` on; n if there is none.
  size_t first_of(int64_t from) const noexcept {
    return static_cast<size_t>(std::ranges::lower_bound(row, from) - row.begin());
  }
};

/// One weight matrix in compressed form. Indices and low-rank factors stay where they are; everything else is small and
/// owned.
///
///     W[r, c] = codebook[index(r, c / d)][c % d]
///     W[r, c] = sidecar value, where the sidecar has one
///     W[r, c] = W[r, c] + sum over i of (U[r, i] s[i]) Vt[i, c]      summed in double, rounded once to float
///     y       = W (x / channel_scales)
///
/// Every index is < k and every sidecar position is inside the matrix: `read_codebook_matrix` has checked it.
struct CodebookMatrix final : StoredMatrix {
  CodebookMatrix() : StoredMatrix(&kCodebookCodec) {}

  int32_t k = 0;  ///< number of codewords
  int32_t d = 1;  ///< weights per codeword (1: scalar codebook)
  IndexLayout layout = IndexLayout::u8;
  std::span<const std::byte> indices = {};
  std::vector<float> codebook = {};  // [k, d], row-major
  Sidecar sidecar = {};
  LowRankView low_rank = {};
  std::vector<float> channel_scales = {};  // [cols], empty when absent

  void decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept override;
  InputTransform transform() const noexcept override { return {.scales = channel_scales}; }
  int64_t outliers() const noexcept override { return static_cast<int64_t>(sidecar.value.size()); }
  std::vector<float> weight_levels() const override;
  int64_t bytes_read() const noexcept override;
};

}  // namespace hxq
