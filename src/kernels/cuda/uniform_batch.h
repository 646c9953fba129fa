#pragma once

#include "kernels/cuda/types.h"

namespace hxq::cuda {

/// What operations along sequences read of a batch of `count` sequences of `tokens` rows each, made in device memory
/// from numbers that the host knows, so that a program needs none of it there; and a small matrix of theirs, turned as
/// they want it. What is launched after this may read it, and everything that the stream wrote before, from its first
/// instruction on: copies, unlike kernels, are not overtaken.
struct UniformBatchArgs {
  int32_t count = 0;
  int32_t tokens = 0;
  float* states = nullptr;        ///< of the first sequence, or null: zeros in the workspace
  int64_t state_size = 0;         ///< floats of a sequence's state
  const float* matrix = nullptr;  // [matrix_rows, matrix_cols], or null
  int64_t matrix_rows = 0;
  int64_t matrix_cols = 0;
  bool matrix_is_log = false;  ///< turned into -exp(matrix)^T rather than matrix^T
  Workspace workspace = {};    ///< `uniform_batch_workspace`; holds the results
};

struct UniformBatch {
  Batch batch;
  void* const* states = nullptr;  // [count]
  const float* matrix = nullptr;  // [matrix_cols, matrix_rows]
};

size_t uniform_batch_workspace(const UniformBatchArgs& args) noexcept;
Status make_uniform_batch(const UniformBatchArgs& args, UniformBatch& made, Stream stream) noexcept;

}  // namespace hxq::cuda
