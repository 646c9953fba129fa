#pragma once

#include <span>

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// Whether `batch_gemv` takes the product: on Hopper, 2 to 8 tokens, matrices for which it is faster than others (from
/// 1 M weights and 129 columns on, to 4,096 columns, or to 16 M weights where x is two numbers), bytes of single
/// weights, rows of the matrix and of x aligned to 16 bytes, no scales of columns; for `Precision::exact` levels that
/// fit binary16.
bool supports_batch_gemv(const CodebookWeight& weight, const LinearArgs& args) noexcept;

/// y = W x for a few tokens and 1 to kMaxFusedProducts matrices of as many columns, each with rows. Levels and x are
/// rounded to binary16, x of F32 to two such numbers for `exact`; outliers are multiplied in float. Of `args`, y, bias,
/// accumulate and workspace mean nothing. Each product's `low_rank_product`: x Vt^T [tokens, rank] where the weight has
/// such a term.
Status batch_gemv(const LinearArgs& args, std::span<const FusedProduct> products, Stream stream) noexcept;

}  // namespace hxq::cuda
