#pragma once

#include <cstdint>
#include <span>
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

  int64_t bytes() const noexcept {
    return static_cast<int64_t>(u.bytes.size() + s.size() * sizeof(float) + vt.bytes.size());
  }

  /// U[row, n] s[n].
  float scaled_u(int64_t row, int64_t n) const noexcept {
    float value;
    read_floats(u, row * rank + n, {&value, 1});
    return value * s[static_cast<size_t>(n)];
  }
};

class ModuleParts;

/// The parts svd_U, svd_s and svd_Vt of a matrix [rows, cols], checked; rank 0 where there are none. Throws `Error`.
LowRankView read_low_rank(const ModuleParts& parts, int64_t rows, int64_t cols);

/// Adds the term's row to that row of the matrix without it, [cols]: summed in double, rounded once to float.
void add_low_rank(const LowRankView& term, int64_t row, std::span<float> out) noexcept;

}  // namespace hxq
