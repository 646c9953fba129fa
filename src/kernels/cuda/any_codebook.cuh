#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// y = W x for any codebook matrix and any number of tokens, in float. `low_rank_product`: x Vt^T [tokens, rank] where
/// the weight has a low-rank term.
Status any_codebook_linear(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                           Stream stream) noexcept;

}  // namespace hxq::cuda
