#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kItems = 4;  ///< elements of a thread
constexpr int kMaxThreads = 1024;

/// One block a group of a row. kInRegisters: a thread's elements are its kItems; otherwise rows are so long that they
/// are read again.
template <bool kInRegisters>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(const __grid_constant__ RmsNormArgs p) {
  __shared__ float shared[32];
  let_successors_begin();
  const int64_t size = p.dim / p.groups;
  const int64_t token = blockIdx.x / p.groups;
  const int64_t first = blockIdx.x % p.groups * size;
  const auto threads = static_cast<int>(blockDim.x);
  float weight[kItems], v[kItems];
  if (kInRegisters) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t col = threadIdx.x + i * threads;
      weight[i] = col < size ? __ldg(p.weight + first + col) : 0.0f;
    }
  }
  wait_for_predecessors();
  const auto load = [&](int64_t col) {
    float x = load_at(p.x, token, first + col);
    if (p.residual.data) {
      x += load_at(p.residual, token, first + col);
      store_at(p.residual, token, first + col, x);
      x = load_at(p.residual, token, first + col);  // as it was rounded
    }
    return p.z.data ? x * silu(load_at(p.z, token, first + col)) : x;
  };
  const auto again = [&](int64_t col) {
    const float x = p.residual.data ? load_at(p.residual, token, first + col) : load_at(p.x, token, first + col);
    return p.z.data ? x * silu(load_at(p.z, token, first + col)) : x;
  };
  float sum = 0;
  if (kInRegisters) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t col = threadIdx.x + i * threads;
      v[i] = col < size ? load(col) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) sum = fmaf(v[i], v[i], sum);
  } else {
    for (int64_t col = threadIdx.x; col < size; col += threads) {
      const float x = load(col);
      sum = fmaf(x, x, sum);
    }
  }
  const float scale = 1.0f / sqrtf(sum_block(sum, shared) / static_cast<float>(size) + p.eps);
  if (kInRegisters) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t col = threadIdx.x + i * threads;
      if (col < size) store_at(p.y, token, first + col, v[i] * scale * weight[i]);
    }
  } else {
    for (int64_t col = threadIdx.x; col < size; col += threads)
      store_at(p.y, token, first + col, again(col) * scale * p.weight[first + col]);
  }
}

}  // namespace

Status rms_norm(const RmsNormArgs& args, Stream stream) noexcept {
  if (args.groups < 1 || args.dim % args.groups != 0) return Status::invalid_value;
  if (args.tokens == 0 || args.dim == 0) return Status::ok;
  const int64_t size = args.dim / args.groups;
  const int64_t wanted = ceil_div<int64_t>(ceil_div<int64_t>(size, kItems), 32) * 32;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.tokens * args.groups)),
                          .block = dim3(static_cast<unsigned>(wanted < kMaxThreads ? wanted : kMaxThreads))};
  return wanted <= kMaxThreads ? launch(rms_norm_kernel<true>, shape, stream, args)
                               : launch(rms_norm_kernel<false>, shape, stream, args);
}

}  // namespace hxq::cuda
