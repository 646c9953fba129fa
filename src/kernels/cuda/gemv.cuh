#pragma once

#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// Whether `codebook_gemv` takes the matrix.
bool supports_codebook_gemv(const CodebookWeight& weight) noexcept;

/// y = W x for one token. `low_rank_product`: Vt x [rank] in device memory where the weight has such a term.
Status codebook_gemv(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                     const GemvPlan& plan, Stream stream) noexcept;

}  // namespace hxq::cuda
