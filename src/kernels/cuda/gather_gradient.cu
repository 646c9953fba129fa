#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gradients.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLevels = 1024;  ///< of a codebook whose gradient is summed in shared memory

struct Parameters {
  CodebookWeight weight;
  GatherGradientArgs args;
};

/// A block takes rows in turn, and adds up what their elements give before it tells others.
__global__ void __launch_bounds__(kThreads) gather_gradient_kernel(const __grid_constant__ Parameters p) {
  __shared__ float sums[kLevels];
  let_successors_begin();
  wait_for_predecessors();
  const CodebookWeight& w = p.weight;
  const int entries = w.k * w.d;
  const bool is_small = entries <= kLevels;
  for (int i = static_cast<int>(threadIdx.x); is_small && i < entries; i += kThreads) sums[i] = 0;
  __syncthreads();
  const auto* indices = static_cast<const uint8_t*>(w.indices);
  for (int64_t n = blockIdx.x; n < p.args.count; n += gridDim.x) {
    const int64_t row = p.args.ids[n];
    if (row < 0) continue;
    for (int64_t col = threadIdx.x; col < w.cols; col += kThreads) {
      if (is_outlier(w, row, col)) continue;
      float g = load_at(p.args.g, n, col);
      if (w.channel_scales) g /= w.channel_scales[col];
      const int64_t position = row * w.cols + col;
      const int64_t entry = index_at(indices, w.index_bits, position / w.d) * w.d + position % w.d;
      atomicAdd(is_small ? sums + entry : p.args.gradient + entry, g);
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); is_small && i < entries; i += kThreads)
    atomicAdd(p.args.gradient + i, sums[i]);
}

}  // namespace

Status gather_gradient(const CodebookWeight& weight, const GatherGradientArgs& args, Stream stream) noexcept {
  if (args.count == 0 || weight.cols == 0) return Status::ok;
  const int64_t most = 8 * int64_t{current_device().multiprocessors};
  return launch(gather_gradient_kernel,
                {.grid = dim3(static_cast<unsigned>(args.count < most ? args.count : most)), .block = dim3(kThreads)},
                stream, Parameters{.weight = weight, .args = args});
}

}  // namespace hxq::cuda
