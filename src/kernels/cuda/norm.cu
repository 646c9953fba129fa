#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

/// One block a group of a row.
__global__ void __launch_bounds__(512) rms_norm_kernel(const __grid_constant__ RmsNormArgs p) {
  __shared__ float shared[32];
  let_successors_begin();
  wait_for_predecessors();
  const int64_t size = p.dim / p.groups;
  const int64_t token = blockIdx.x / p.groups;
  const int64_t first = blockIdx.x % p.groups * size;
  const auto value = [&](int64_t col) {
    float v = p.residual.data ? load_at(p.residual, token, col) : load_at(p.x, token, col);
    if (p.z.data) v *= silu(load_at(p.z, token, col));
    return v;
  };
  float sum = 0;
  for (int64_t col = first + threadIdx.x; col < first + size; col += blockDim.x) {
    if (p.residual.data) store_at(p.residual, token, col, load_at(p.residual, token, col) + load_at(p.x, token, col));
    const float v = value(col);
    sum = fmaf(v, v, sum);
  }
  const float scale = 1.0f / sqrtf(sum_block(sum, shared) / static_cast<float>(size) + p.eps);
  for (int64_t col = first + threadIdx.x; col < first + size; col += blockDim.x) {
    store_at(p.y, token, col, value(col) * scale * p.weight[col]);
  }
}

}  // namespace

Status rms_norm(const RmsNormArgs& args, Stream stream) noexcept {
  if (args.groups < 1 || args.dim % args.groups != 0) return Status::invalid_value;
  if (args.tokens == 0 || args.dim == 0) return Status::ok;
  const int64_t size = args.dim / args.groups;
  const unsigned threads = size <= 128 ? 64 : size <= 512 ? 128 : size <= 2048 ? 256 : 512;
  return launch(rms_norm_kernel,
                {.grid = dim3(static_cast<unsigned>(args.tokens * args.groups)), .block = dim3(threads)}, stream, args);
}

}  // namespace hxq::cuda
