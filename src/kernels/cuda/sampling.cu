#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sampling.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 1024;

/// Orders by value, then by index downwards, as one whole number: larger is better. 0 is worse than all.
__device__ inline uint64_t key_of(float value, int64_t index) {
  uint32_t bits = isnan(value) ? __float_as_uint(-INFINITY) : __float_as_uint(value);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

__device__ inline float value_of(uint64_t key) {
  const auto bits = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

__device__ inline uint64_t max_block(uint64_t key, uint64_t* shared) {
  const auto larger = [](uint64_t a, uint64_t b) { return a > b ? a : b; };
  for (int offset = 16; offset > 0; offset /= 2) key = larger(key, __shfl_xor_sync(kAllLanes, key, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = key;
  __syncthreads();
  key = shared[threadIdx.x % 32];
  for (int offset = 16; offset > 0; offset /= 2) key = larger(key, __shfl_xor_sync(kAllLanes, key, offset));
  return key;
}

/// One block a row. Each round takes the best of what is worse than the last; a thread looks at its share of the row
/// again only when its own best was taken.
__global__ void __launch_bounds__(kThreads) top_k_kernel(const __grid_constant__ TopKArgs p) {
  __shared__ uint64_t shared[32];
  let_successors_begin();
  wait_for_predecessors();
  const int64_t row = blockIdx.x;
  const auto best_below = [&](uint64_t limit) {
    uint64_t best = 0;
    for (int64_t i = threadIdx.x; i < p.vocabulary; i += kThreads) {
      const uint64_t key = key_of(load_at(p.logits, row, i), i);
      if (key < limit && key > best) best = key;
    }
    return best;
  };
  uint64_t own = best_below(~uint64_t{0});
  for (int k = 0; k < p.count; ++k) {
    const uint64_t best = max_block(own, shared);
    if (own == best) {
      p.indices[row * p.count + k] = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
      if (p.values) p.values[row * p.count + k] = value_of(best);
      if (k + 1 < p.count) own = best_below(best);
    }
  }
}

}  // namespace

Status top_k(const TopKArgs& args, Stream stream) noexcept {
  if (args.count < 1 || args.count > kMaxTopK || args.count > args.vocabulary) return Status::invalid_value;
  if (args.rows == 0) return Status::ok;
  return launch(top_k_kernel, {.grid = dim3(static_cast<unsigned>(args.rows)), .block = dim3(kThreads)}, stream, args);
}

}  // namespace hxq::cuda
