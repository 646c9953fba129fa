#pragma once

#include <cstdint>
#include <vector>

namespace hxq {

/// Low-rank term of a matrix, stored apart from what a codec codes: W += U diag(s) Vt.
struct LowRank {
  int64_t rank = 0;
  std::vector<float> u_scaled = {};  // [rows, rank], U with s multiplied in
  std::vector<float> vt = {};        // [rank, cols]
};

}  // namespace hxq
