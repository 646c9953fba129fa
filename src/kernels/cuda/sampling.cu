#include <cooperative_groups.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sampling.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kMostBlocks = 8;  ///< of a cluster, which has a row
constexpr int64_t kLargestVocabulary = 1 << 30;
constexpr int kLoads = 4;  ///< of four logits each, that a thread has under way

/// Orders by value, then by index downwards, as one whole number: larger is better, NaN best. 0 is worse than all.
__device__ inline uint64_t key_of(float value, int index) {
  uint32_t bits = value == 0 ? 0u : __float_as_uint(value);  // both zeros are equal
  bits = isnan(value) ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

__device__ inline uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ inline int32_t token_of(uint64_t key) {
  const auto bits = static_cast<uint32_t>(key >> 32);
  const bool is_finite = bits > ~__float_as_uint(-INFINITY) && bits < (__float_as_uint(INFINITY) | 0x80000000u);
  return is_finite ? static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)) : -1;
}

/// The best of a row that thread `thread` of `threads` looks at.
__device__ inline uint64_t best_of_thread(const MostLikelyArgs& p, int64_t row, int thread, int threads) {
  uint64_t best = 0;
  const int64_t bytes = row * p.logits.stride * static_cast<int64_t>(sizeof(float));
  const auto* fours = reinterpret_cast<const float4*>(static_cast<const char*>(p.logits.data) + bytes);
  const bool reads_fours = p.logits.dtype == DType::f32 && reinterpret_cast<uintptr_t>(fours) % sizeof(float4) == 0;
  const int vocabulary = static_cast<int>(p.vocabulary);
  const int count = reads_fours ? vocabulary / 4 : 0;
  for (int begin = thread; begin < count; begin += kLoads * threads) {
    float4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (begin + i * threads < count) v[i] = fours[begin + i * threads];
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = begin + i * threads;
      if (at >= count) break;
      best = larger(best, larger(larger(key_of(v[i].x, 4 * at), key_of(v[i].y, 4 * at + 1)),
                                 larger(key_of(v[i].z, 4 * at + 2), key_of(v[i].w, 4 * at + 3))));
    }
  }
  for (int i = 4 * count + thread; i < vocabulary; i += threads) {
    best = larger(best, key_of(load_at(p.logits, row, i), i));
  }
  return best;
}

__device__ inline uint64_t best_of_lanes(uint64_t key, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) key = larger(key, __shfl_xor_sync(kAllLanes, key, offset));
  return key;
}

/// `blocks` of a cluster have a row.
__global__ void __launch_bounds__(kThreads, 3)
    most_likely_kernel(const __grid_constant__ MostLikelyArgs p, const int blocks) {
  __shared__ uint64_t of_warps[kWarps];
  __shared__ uint64_t of_blocks[kMostBlocks];  // in the cluster's first
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  if (blocks > 1) cluster.barrier_arrive();
#endif
  let_successors_begin();
  wait_for_predecessors();
  const int thread = static_cast<int>(threadIdx.x);
  const int block = static_cast<int>(blockIdx.x) % blocks;
  const int64_t row = static_cast<int>(blockIdx.x) / blocks;
  uint64_t best = best_of_lanes(best_of_thread(p, row, block * kThreads + thread, blocks * kThreads), 32);
  if (thread % 32 == 0) of_warps[thread / 32] = best;
  __syncthreads();
  if (thread < 32) best = best_of_lanes(of_warps[thread % kWarps], kWarps);
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    cluster.barrier_wait();  // all of them run
    if (thread == 0) *cluster.map_shared_rank(of_blocks + block, 0) = best;
    cluster.sync();
    if (thread < 32) best = best_of_lanes(thread < blocks ? of_blocks[thread] : 0, 32);
  }
#endif
  if (block == 0 && thread == 0) p.token[row] = token_of(best);
}

}  // namespace

Status most_likely(const MostLikelyArgs& args, Stream stream) noexcept {
  if (args.vocabulary < 1 || args.vocabulary > kLargestVocabulary || args.rows < 0) return Status::invalid_value;
  if (args.rows == 0) return Status::ok;
  int blocks = 1;
  if (current_device().compute_capability >= 90) {
    while (blocks < kMostBlocks && args.vocabulary > int64_t{4} * kLoads * kThreads * blocks) blocks *= 2;
  }
  return launch(most_likely_kernel,
                {.grid = dim3(static_cast<unsigned>(args.rows * blocks)), .block = dim3(kThreads), .cluster = blocks},
                stream, args, blocks);
}

}  // namespace hxq::cuda
