#pragma once

#include "kernels/cuda/table.h"

/// One name for what the launchers have for each kind of matrix.
namespace hxq::kernels {

inline size_t workspace_of(const cuda::Kernels& kernels, const cuda::CodebookWeight& weight, int64_t tokens) noexcept {
  return kernels.codebook_linear_workspace(weight, tokens);
}
inline size_t workspace_of(const cuda::Kernels& kernels, const cuda::GroupedWeight& weight, int64_t tokens) noexcept {
  return kernels.grouped_linear_workspace(weight, tokens);
}
inline size_t workspace_of(const cuda::Kernels& kernels, const cuda::DenseWeight& weight, int64_t tokens) noexcept {
  return kernels.dense_linear_workspace(weight, tokens);
}

inline cuda::Status multiply(const cuda::Kernels& kernels, const cuda::CodebookWeight& weight,
                             const cuda::LinearArgs& args, cuda::Stream stream) noexcept {
  return kernels.codebook_linear(weight, args, stream);
}
inline cuda::Status multiply(const cuda::Kernels& kernels, const cuda::GroupedWeight& weight,
                             const cuda::LinearArgs& args, cuda::Stream stream) noexcept {
  return kernels.grouped_linear(weight, args, stream);
}
inline cuda::Status multiply(const cuda::Kernels& kernels, const cuda::DenseWeight& weight,
                             const cuda::LinearArgs& args, cuda::Stream stream) noexcept {
  return kernels.dense_linear(weight, args, stream);
}

inline cuda::Status gather(const cuda::Kernels& kernels, const cuda::CodebookWeight& weight,
                           const cuda::GatherArgs& args, cuda::Stream stream) noexcept {
  return kernels.codebook_gather_rows(weight, args, stream);
}
inline cuda::Status gather(const cuda::Kernels& kernels, const cuda::GroupedWeight& weight,
                           const cuda::GatherArgs& args, cuda::Stream stream) noexcept {
  return kernels.grouped_gather_rows(weight, args, stream);
}
inline cuda::Status gather(const cuda::Kernels& kernels, const cuda::DenseWeight& weight, const cuda::GatherArgs& args,
                           cuda::Stream stream) noexcept {
  return kernels.dense_gather_rows(weight, args, stream);
}

}  // namespace hxq::kernels
