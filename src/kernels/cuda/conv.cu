#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRun = 32;  ///< tokens of a block, at least as many as a state holds

/// A thread has one channel and up to kRun tokens. The block of a segment's first tokens also advances the state: it is
/// the only one that reads it.
__global__ void __launch_bounds__(kThreads) conv_kernel(const __grid_constant__ ConvArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const Segment segment = p.batch.segments[blockIdx.y];
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int begin = static_cast<int>(blockIdx.z) * kRun;
  if (begin >= segment.rows || c >= p.channels) return;
  const auto past = static_cast<int>(p.width - 1);
  float* state = p.states[blockIdx.y];
  const auto input = [&](int t) {
    return t < 0 ? state[(t + past) * p.channels + c] : load_at(p.x, segment.first_row + t, c);
  };
  const float bias = p.bias ? p.bias[c] : 0.0f;
  for (int t = begin; t < min(begin + kRun, segment.rows); ++t) {
    float sum = bias;
    for (int j = 0; j <= past; ++j) sum = fmaf(p.weight[j * p.channels + c], input(t - past + j), sum);
    store_at(p.y, segment.first_row + t, c, silu(sum));
  }
  if (begin > 0) return;
  // In order: what is overwritten is read no more.
  for (int j = 0; j < past; ++j) state[j * p.channels + c] = input(segment.rows - past + j);
}

}  // namespace

Status causal_conv1d_silu(const ConvArgs& args, Stream stream) noexcept {
  if (args.width < 1 || args.width > kMaxConvWidth) return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0) return Status::ok;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.channels, kThreads)),
                  static_cast<unsigned>(args.batch.count), static_cast<unsigned>(ceil_div(args.batch.max_rows, kRun)));
  return launch(conv_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

}  // namespace hxq::cuda
