#pragma once

#include "kernels/cuda/grouped.h"

/// Gradients of the products. `g` is dL/dy, `dv` is dL/dv.
namespace hxq::cuda {

/// dx = g W / channel_scales
struct LinearTransposedArgs {
  Input g;    // [tokens, rows]
  Output dx;  // [tokens, cols]
  int64_t tokens = 0;
};
Status linear_transposed(const CodebookWeight& weight, const LinearTransposedArgs& args, Stream stream) noexcept;
Status linear_transposed(const GroupedWeight& weight, const LinearTransposedArgs& args, Stream stream) noexcept;

/// dC[j, i] += sum of (g^T x)[r, c] over the elements that take component i of codeword j; outliers take none. x is
/// taken before the channel scales. The order of the sums is not fixed.
struct CodebookGradientArgs {
  Input x;  // [tokens, cols]
  Input g;  // [tokens, rows]
  int64_t tokens = 0;
  float* gradient = nullptr;  // [k, d], added to
};
Status codebook_gradient(const CodebookWeight& weight, const CodebookGradientArgs& args, Stream stream) noexcept;

/// The codebook's gradient for `gather_rows`: dC[j, i] += g[n, c] over the elements of rows ids[n] that take component
/// i of codeword j; outliers take none, negative ids give none. The order of the sums is not fixed.
struct GatherGradientArgs {
  const int32_t* ids = nullptr;  // [count]
  int64_t count = 0;
  Input g;                    // [count, cols]
  float* gradient = nullptr;  // [k, d], added to
};
Status gather_gradient(const CodebookWeight& weight, const GatherGradientArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
