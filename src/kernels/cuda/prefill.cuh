#pragma once

#include <span>

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// From this many tokens on decoding panels of the matrix for cuBLAS may cost less than looking tiles up as they are
/// used (`tile_gemm_beats_panels`).
inline constexpr int64_t kPrefillTokens = 384;
/// Of a panel, at most. A panel that must come back from memory costs less than products of so few rows that they leave
/// multiprocessors idle.
inline constexpr int64_t kPanelBytes = int64_t{96} << 20;

/// Whether `prefill_products` takes the product: fast, with cuBLAS at hand.
bool supports_prefill(const CodebookWeight& weight, const LinearArgs& args) noexcept;

/// Rows of the panels that a matrix is decoded in: as many as are about `panel_bytes`, and of all panels about as many.
int64_t panel_rows(int64_t rows, int64_t cols, int64_t panel_bytes, DType dtype) noexcept;

/// y = bias (+ y) of every token, for products that then add to it.
Status start_with_bias(const LinearArgs& args, int64_t rows, Stream stream) noexcept;

size_t prefill_workspace(const CodebookWeight& weight, int64_t tokens) noexcept;

/// `joint_linear` by decoding panels of rows to BF16 for cuBLAS. Weights and x are rounded to BF16, outliers, scales
/// and the low-rank term included.
Status prefill_products(const LinearArgs& args, const XSource& source, std::span<const FusedProduct> products,
                        Stream stream, int64_t panel_bytes = kPanelBytes) noexcept;

}  // namespace hxq::cuda
