#pragma once

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>
#include <span>
#include <vector>

#include "codec/codebook/matrix.h"
#include "hxq/error.h"
#include "kernels/codebook_facts.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda_device/low_rank_factors.h"

namespace hxq::kernels {

/// Where the outliers of each row begin, [rows + 1]; empty if there are none. Throws `OutOfMemory`.
inline std::vector<uint32_t> outlier_row_begin(const CodebookMatrix& matrix) {
  if (matrix.outliers() == 0) return {};
  const auto count = static_cast<size_t>(matrix.rows) + 1;
  std::vector<uint32_t> begin;
  try {
    begin.resize(count);
  } catch (const std::bad_alloc&) {
    throw OutOfMemory("where rows' outliers begin", count * sizeof(uint32_t));
  }
  for (const uint32_t row : matrix.sidecar.row) ++begin[row + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  return begin;
}

/// A codebook matrix as the kernels for GPUs take it. `place(field, values)` is called for every array but the indices:
/// it copies the values to where they shall be and sets, then or later, the field to their address there.
template <class Place>
void describe(const CodebookMatrix& matrix, cuda::CodebookWeight& weight, const Place& place) {
  constexpr int kIndexBits[] = {8, 16, 12};
  const LevelScale levels = matrix.d == 1 ? level_scale(matrix.codebook) : LevelScale{};
  const float largest = cuda::kLargestTileWeight * levels.scale;
  const auto is_zero = [](float level) { return level == 0; };
  const auto is_small = [&](float value) { return std::abs(value) <= largest; };
  weight.rows = matrix.rows;
  weight.cols = matrix.cols;
  weight.k = matrix.k;
  weight.d = matrix.d;
  weight.index_bits = kIndexBits[static_cast<size_t>(matrix.layout)];
  weight.rank = static_cast<int32_t>(matrix.low_rank.rank);
  weight.level_scale = levels.scale;
  weight.levels_fit_half = levels.fits_half;
  weight.fits_tiles = levels.scale > 0 && !std::ranges::all_of(matrix.codebook, is_zero) &&
                      std::ranges::all_of(matrix.sidecar.value, is_small);
  const std::vector<float> changes = outlier_changes(matrix);
  const std::vector<uint32_t> row_begin = outlier_row_begin(matrix);
  const LowRank factors = float_factors(matrix.low_rank);
  place(weight.codebook, std::span<const float>(matrix.codebook));
  place(weight.outlier_row_begin, std::span<const uint32_t>(row_begin));
  place(weight.outlier_col, std::span<const uint32_t>(matrix.sidecar.col));
  place(weight.outlier_change, std::span<const float>(changes));
  place(weight.channel_scales, std::span<const float>(matrix.channel_scales));
  place(weight.low_rank_u, std::span<const float>(factors.u_scaled));
  place(weight.low_rank_vt, std::span<const float>(factors.vt));
}

}  // namespace hxq::kernels
