#pragma once

#include <cstdint>

#include "codec/codebook/matrix.h"
#include "kernels/cpu_context.h"

/// Gradients of codebooks, by the rules of gradients.h.
namespace hxq::kernels {

/// dC[j, i] = sum of (g^T x)[r, c] over the elements that take component i of codeword j; outliers take none.
struct CodebookGradientArgs {
  const float* x = nullptr;  // [tokens, cols], contiguous, before the channel scales
  const float* g = nullptr;  // [tokens, rows], contiguous
  int64_t tokens = 0;
  float* gradient = nullptr;  // [k, d]
};
void codebook_gradient(const CodebookMatrix& weight, const CodebookGradientArgs& args,
                       const CpuContext& context) noexcept;

/// The same for `gather_rows`: dC[j, i] = sum of g over the elements gathered from component i of codeword j.
struct GatherGradientArgs {
  const int32_t* ids = nullptr;  // [count]
  const float* g = nullptr;      // [count, cols], contiguous
  int64_t count = 0;
  float* gradient = nullptr;  // [k, d]
};
void gather_codebook_gradient(const CodebookMatrix& weight, const GatherGradientArgs& args,
                              const CpuContext& context) noexcept;

}  // namespace hxq::kernels
