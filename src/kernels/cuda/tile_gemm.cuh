#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// From this many tokens on it costs less than multiplying with the bytes (measured on an H100).
inline int64_t least_tile_tokens(const CodebookWeight& weight) noexcept {
  constexpr int64_t kSmallMatrix = int64_t{4} << 20;
  return weight.cols <= 1024 || weight.rows * weight.cols <= kSmallMatrix ? 33 : 65;
}

/// Whether `tile_gemm` takes the product: on Hopper, tokens enough, rows of the matrix aligned to 16 bytes, weights
/// that fit tiles; for `Precision::exact` x of BF16 or F16 without channel scales, and levels that fit binary16.
bool supports_tile_gemm(const CodebookWeight& weight, const LinearArgs& args) noexcept;

/// Bytes of workspace for up to `tokens` tokens, whatever the precision.
size_t tile_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept;

/// y = W x for many tokens. Weights are decoded to tiles of binary16 in shared memory, outliers included, and x is kept
/// to 11 bits below the largest of its token: `fast` rounds weights to binary16, `exact` keeps two numbers of each (22
/// bits). `low_rank_product`: x Vt^T [tokens, rank] where the weight has such a term.
Status tile_gemm(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                 Stream stream) noexcept;

}  // namespace hxq::cuda
