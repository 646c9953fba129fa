#pragma once

#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// Numbers that stand for an element of x: one of 11 bits has not all that F32, or what is divided by scales, has.
inline int parts_of(const CodebookWeight& weight, const LinearArgs& args) noexcept {
  return args.precision == Precision::exact && (args.x.dtype == DType::f32 || weight.channel_scales) ? 2 : 1;
}

/// Whether the tensor-core kernels of this build and GPU take the matrix.
bool supports_codebook_gemm(const CodebookWeight& weight) noexcept;

/// Whether they take it together with others of as many columns: x is the same for all of them then.
bool supports_joint_gemm(const CodebookWeight& weight, Precision precision) noexcept;

/// Of one product or several together.
size_t codebook_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept;

/// y = W x for several tokens and 1 to kMaxFusedProducts matrices, each with rows; of several, each one that
/// `supports_joint_gemm` takes. Of `args`, y, bias and accumulate mean nothing. Each
/// product's `low_rank_product`: x Vt^T [tokens, rank] where the weight has such a term.
Status codebook_gemm(const LinearArgs& args, const FusedProduct* products, int64_t count, Stream stream) noexcept;

}  // namespace hxq::cuda
