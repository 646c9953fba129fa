#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "codec/grouped/matrix.h"
#include "io/half.h"
#include "kernels/cuda/grouped.h"
#include "kernels/cuda_device/low_rank_factors.h"

namespace hxq::kernels {

/// BF16 numbers whose sum every level is: 1, 2, or 0 where that takes more.
inline int32_t bf16_parts(std::span<const float> levels) {
  int32_t most = 1;
  for (const float level : levels) {
    float rest = level;
    int32_t parts = 0;
    for (; rest != 0 && parts < 3; ++parts) rest -= float_from_bf16(bf16_from_float(rest));
    if (parts > 2) return 0;
    most = std::max(most, parts);
  }
  return most;
}

/// A grouped matrix as the kernels for GPUs take it. `place(field, values)` is called for every array but the indices
/// and scales: it copies the values to where they shall be and sets, then or later, the field to their address there.
template <class Place>
void describe(const GroupedMatrix& matrix, cuda::GroupedWeight& weight, const Place& place) {
  weight.rows = matrix.rows;
  weight.cols = matrix.cols;
  weight.group = matrix.group;
  weight.bits = matrix.bits();
  weight.level_parts = bf16_parts(matrix.levels);
  weight.rank = static_cast<int32_t>(matrix.low_rank.rank);
  std::vector<float> scale_levels = matrix.scale_levels;
  scale_levels.resize(256);
  const LowRank factors = float_factors(matrix.low_rank);
  place(weight.levels, std::span<const float>(matrix.levels));
  place(weight.scale_levels, std::span<const float>(scale_levels));
  place(weight.low_rank_u, std::span<const float>(factors.u_scaled));
  place(weight.low_rank_vt, std::span<const float>(factors.vt));
}

}  // namespace hxq::kernels
