#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// From this many tokens on it costs less than the product for few tokens (measured on an H100).
inline constexpr int64_t kLeastTileTokens = 33;

/// Whether `tile_gemm` takes the product: on Hopper, tokens enough, rows of the matrix aligned to 16 bytes; for
/// `Precision::exact` x of BF16 or F16 without channel scales, and levels that fit binary16.
bool supports_tile_gemm(const CodebookWeight& weight, const LinearArgs& args) noexcept;

/// Whether it takes less time than decoding panels for cuBLAS, of a product that both take.
bool tile_gemm_beats_panels(const CodebookWeight& weight, int64_t tokens) noexcept;

/// Bytes of workspace for up to `tokens` tokens, whatever the precision.
size_t tile_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept;

/// y = W x for many tokens. x is kept to 11 bits below the largest of its token, levels are rounded to binary16, and
/// so are outliers of `fast` where tokens are many. `low_rank_product`: x Vt^T [tokens, rank] where the weight has such
/// a term.
Status tile_gemm(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                 Stream stream) noexcept;

}  // namespace hxq::cuda
