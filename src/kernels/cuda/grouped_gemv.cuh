#pragma once

#include <span>

#include "kernels/cuda/grouped.h"

namespace hxq::cuda {

/// The most tokens of one kernel.
inline constexpr int64_t kGroupedGemvTokens = 8;
/// The largest rank whose Vt x the kernel works out itself, of one token.
inline constexpr int kGroupedGemvRank = 4;

/// How many tokens `grouped_gemv` takes at most: 0 where it does not take the matrix.
int64_t grouped_gemv_tokens(const GroupedWeight& weight) noexcept;

/// Products of few tokens with 1 to kMaxFusedProducts matrices of as many columns and bits, in one kernel. Of several
/// tokens there must be a `low_rank_product`, [tokens, rank], where there is a low-rank term, and no norm.
Status grouped_gemv(const FusedInput& input, int64_t tokens, std::span<const GroupedProduct> products,
                    Stream stream) noexcept;

}  // namespace hxq::cuda
