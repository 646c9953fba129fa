#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// Whether the tensor-core kernels of this build and GPU take the matrix.
bool supports_codebook_gemm(const CodebookWeight& weight) noexcept;

size_t codebook_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept;

/// y = W x for several tokens. `low_rank_product`: x Vt^T [tokens, rank] where the weight has such a term.
Status codebook_gemm(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                     Stream stream) noexcept;

}  // namespace hxq::cuda
