#pragma once

#include <cstdint>
#include <vector>

#include "hxq/tensor.h"

namespace hxq {

/// Low-rank term of a matrix as the encoder works it out: W += U diag(s) Vt.
struct LowRank {
  int64_t rank = 0;
  std::vector<float> u_scaled = {};  // [rows, rank], U with s multiplied in
  std::vector<float> vt = {};        // [rank, cols]
};

/// Low-rank term as it is stored, apart from what a codec codes: W += U diag(s) Vt. The factors stay where they are,
/// in F32, F16 or BF16; all numbers are finite, U times s too.
struct LowRankView {
  int64_t rank = 0;
  TensorView u = {};          // [rows, rank]
  std::vector<float> s = {};  // [rank]
  TensorView vt = {};         // [rank, cols]

  /// U[row, n] s[n].
  float scaled_u(int64_t row, int64_t n) const noexcept {
    float value;
    read_floats(u, row * rank + n, {&value, 1});
    return value * s[static_cast<size_t>(n)];
  }
};

}  // namespace hxq
