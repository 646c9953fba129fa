#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// From this many tokens on decoding panels of the matrix for cuBLAS costs less than decoding tiles as they are used.
inline constexpr int64_t kPrefillTokens = 768;

/// Whether `prefill_product` takes the product: fast, with cuBLAS at hand.
bool supports_prefill(const CodebookWeight& weight, const LinearArgs& args) noexcept;

size_t prefill_workspace(const CodebookWeight& weight, int64_t tokens) noexcept;

/// y = W x by decoding panels of rows to BF16, small enough to stay in the second-level cache, for cuBLAS.
/// Weights and x are rounded to BF16, outliers, scales and the low-rank term included.
Status prefill_product(const CodebookWeight& weight, const LinearArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
