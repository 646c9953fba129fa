#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "codec/grouped/matrix.h"
#include "io/half.h"
#include "kernels/cuda/grouped.h"

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
  const LowRankView& term = matrix.low_rank;
  std::vector<float> u, vt;
  if (term.rank > 0) u = to_float(term.u), vt = to_float(term.vt);
  for (size_t i = 0; i < u.size(); ++i) u[i] *= term.s[i % term.s.size()];
  place(weight.levels, std::span<const float>(matrix.levels));
  place(weight.scale_levels, std::span<const float>(scale_levels));
  place(weight.low_rank_u, std::span<const float>(u));
  place(weight.low_rank_vt, std::span<const float>(vt));
}

}  // namespace hxq::kernels
