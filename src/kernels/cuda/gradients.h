#pragma once

#include "kernels/cuda/linear.h"

/// Gradients of the products. `g` is dL/dy, `dv` is dL/dv.
namespace hxq::cuda {

/// dx = g W / channel_scales
struct LinearTransposedArgs {
  Input g;    // [tokens, rows]
  Output dx;  // [tokens, cols]
  int64_t tokens = 0;
};
Status linear_transposed(const CodebookWeight& weight, const LinearTransposedArgs& args, Stream stream) noexcept;

/// dC[j, i] += sum of (g^T x)[r, c] over the elements that take component i of codeword j; outliers take none. x is
/// taken before the channel scales. The order of the sums is not fixed.
struct CodebookGradientArgs {
  Input x;  // [tokens, cols]
  Input g;  // [tokens, rows]
  int64_t tokens = 0;
  float* gradient = nullptr;  // [k, d], added to
};
Status codebook_gradient(const CodebookWeight& weight, const CodebookGradientArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
