#pragma once

#include <span>

#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// The largest rank whose Vt x the kernel works out itself.
inline constexpr int kGemvMaxRank = 4;

/// Whether `codebook_gemv` takes the matrix with an x that is taken as it is.
bool supports_codebook_gemv(const CodebookWeight& weight) noexcept;

/// Products of one token with 1 to kMaxFusedProducts matrices of as many columns, in one kernel.
Status codebook_gemv(const FusedInput& input, std::span<const FusedProduct> products, Stream stream) noexcept;

}  // namespace hxq::cuda
