#pragma once

#include "codec/low_rank.h"

namespace hxq::kernels {

/// The factors of a stored term in floats, as the kernels for GPUs take them; empty if there is none.
inline LowRank float_factors(const LowRankView& term) {
  LowRank factors{.rank = term.rank};
  if (term.rank == 0) return factors;
  factors.u_scaled = to_float(term.u);
  factors.vt = to_float(term.vt);
  for (size_t i = 0; i < factors.u_scaled.size(); ++i) factors.u_scaled[i] *= term.s[i % term.s.size()];
  return factors;
}

}  // namespace hxq::kernels
