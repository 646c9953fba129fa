#pragma once

#include "kernels/cpu/codebook_prepared.h"
#include "kernels/cpu/ops.h"

namespace hxq::kernels {

/// The matrix as the code of the targets sees it; valid while `weight` is.
inline cpu::CodebookView view_of(const cpu::PreparedCodebook& weight) {
  constexpr int kIndexBits[] = {8, 16, 12};
  const CodebookMatrix& stored = weight.stored();
  return {
      .rows = stored.rows,
      .cols = stored.cols,
      .k = stored.k,
      .d = stored.d,
      .index_bits = kIndexBits[static_cast<size_t>(stored.layout)],
      .indices = reinterpret_cast<const uint8_t*>(stored.indices.data()),
      .codebook = stored.codebook.data(),
      .planes_kind = weight.planes().kind,
      .integer_levels = weight.planes().integer_levels,
      .planes_scale = weight.planes().scale,
      .planes = weight.planes().bytes.empty() ? nullptr : weight.planes().bytes[0].data(),
      .segment_planes = weight.planes().has_segments ? weight.planes().segments[0].data() : nullptr,
      .segment_shift = weight.planes().segment_shift,
      .outliers = stored.outliers(),
      .most_outliers = weight.most_outliers(),
      .outlier_row = stored.sidecar.row.data(),
      .outlier_col = stored.sidecar.col.data(),
      .outlier_value = stored.sidecar.value.data(),
      .outlier_change = weight.outlier_changes().data(),
  };
}

}  // namespace hxq::kernels
