#pragma once

#include "kernels/cpu/ops.h"

namespace hxq::kernels {

/// The matrix as the code of the targets sees it; valid while `weight` is.
inline cpu::CodebookView view_of(const CodebookMatrix& weight) {
  constexpr int kIndexBits[] = {8, 16, 12};
  return {
      .rows = weight.rows,
      .cols = weight.cols,
      .k = weight.k,
      .d = weight.d,
      .index_bits = kIndexBits[static_cast<size_t>(weight.layout)],
      .indices = reinterpret_cast<const uint8_t*>(weight.indices.data()),
      .codebook = weight.codebook.data(),
      .planes_kind = weight.planes.kind,
      .integer_levels = weight.planes.integer_levels,
      .planes_scale = weight.planes.scale,
      .half_planes = weight.planes.half[0].data(),
      .integer_planes = weight.planes.integer[0].data(),
      .float_planes = weight.planes.float32[0].data(),
      .outlier_row = weight.sidecar.row_begin.empty() ? nullptr : weight.sidecar.row_begin.data(),
      .outlier_col = weight.sidecar.col.data(),
      .outlier_value = weight.sidecar.value.data(),
      .outlier_change = nullptr,
  };
}

}  // namespace hxq::kernels
