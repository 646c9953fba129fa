#pragma once

#include <span>

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// Up to so many tokens it costs less than the kernels for more of them (measured on an H100). `parts`: numbers for an
/// element of x.
inline int64_t most_skinny_tokens(const CodebookWeight& weight, int parts) noexcept {
  constexpr int64_t kSmallMatrix = int64_t{4} << 20, kMiddleMatrix = int64_t{16} << 20;
  const int64_t weights = weight.rows * weight.cols;
  if (weights <= kSmallMatrix) return parts == 2 ? 32 : 64;
  return weights <= kMiddleMatrix && parts == 1 ? 8 : 0;
}

/// Whether `skinny_gemm` takes the product: on Hopper, few tokens for the size of the matrix, bytes of single weights,
/// rows of the matrix and of x aligned to 16 bytes, no scales of columns, and at most 16,384 columns (half of it for
/// more than 8 tokens, half again for x in two parts); for `Precision::exact` levels that fit binary16.
bool supports_skinny_gemm(const CodebookWeight& weight, const LinearArgs& args) noexcept;

/// y = W x for few tokens and 1 to kMaxFusedProducts matrices of as many columns, each with rows. Levels and x are
/// rounded to 11 bits (TF32), x of F32 to 22 for `exact`. Of `args`, y, bias, accumulate and workspace mean nothing.
/// Each product's `low_rank_product`: x Vt^T [tokens, rank] where the weight has such a term.
Status skinny_gemm(const LinearArgs& args, std::span<const FusedProduct> products, Stream stream) noexcept;

}  // namespace hxq::cuda
