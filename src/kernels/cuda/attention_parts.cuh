// Attention of a row's head whose positions are cut into parts: what each part gives, and how parts are joined.

#pragma once

#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {

/// [count, total_rows, query_heads, head_dim + 2] in the workspace: of each part what attention over its positions
/// alone gives, the exponent of two that its weights are relative to, and their sum: 0 where it has no positions, and
/// the rest is not looked at.
struct AttentionParts {
  float* data = nullptr;
  int count = 1;

  static size_t bytes(const AttentionArgs& args, int count) {
    if (count == 1) return 0;
    return static_cast<size_t>(int64_t{count} * args.batch.total_rows * args.query_heads * (args.cache.head_dim + 2)) *
           sizeof(float);
  }

  __device__ float* at(const AttentionArgs& args, int part, int64_t row, int64_t head) const {
    return data + ((part * int64_t{args.batch.total_rows} + row) * args.query_heads + head) * (args.cache.head_dim + 2);
  }

  /// A block of kThreads writes y of a row's head, from its first `of` parts.
  template <int kThreads>
  __device__ void join(const AttentionArgs& args, int of, int64_t row, int64_t head) const {
    __shared__ float scale[kMostAttentionParts];
    const int64_t dim = args.cache.head_dim, stride = at(args, 1, 0, 0) - at(args, 0, 0, 0);
    const float* first = at(args, 0, row, head);
    if (threadIdx.x < 32) {
      const bool is_there = static_cast<int>(threadIdx.x) < of;
      const float weight = is_there ? first[threadIdx.x * stride + dim + 1] : 0.0f;
      const float exponent = weight > 0 ? first[threadIdx.x * stride + dim] : -INFINITY;
      const float share = weight * fast_exp2(exponent - max_lanes(exponent));
      scale[threadIdx.x] = share / sum_lanes(share);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
      float sum = 0;
#pragma unroll 8
      for (int part = 0; part < of; ++part) {
        const float value = first[part * stride + i];
        if (scale[part] != 0) sum = fmaf(value, scale[part], sum);
      }
      store_at(args.y, row, head * dim + i, sum);
    }
  }
};

}  // namespace hxq::cuda
