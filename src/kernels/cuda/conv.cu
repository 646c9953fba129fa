#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;

/// A thread has one channel and up to kRun tokens. kWidth: taps of the filter, at most. The block of a segment's first
/// tokens also advances the state, and it is the only one that reads it: kRun is no less than what is before a token.
template <int kWidth, int kRun>
__global__ void __launch_bounds__(kThreads) conv_kernel(const __grid_constant__ ConvArgs p) {
  let_successors_begin();
  const RowRange segment = p.batch.segments[blockIdx.y];
  const int rows = segment.end - segment.begin;
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int begin = static_cast<int>(blockIdx.z) * kRun;
  const bool is_there = c < p.channels;
  auto* state = static_cast<float*>(p.states[blockIdx.y]);
  const auto width = static_cast<int>(p.width);
  float weight[kWidth];  // the last one is that of the token itself
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const int tap = j - (kWidth - width);
    weight[j] = tap >= 0 && is_there ? __ldg(p.weight + tap * p.channels + c) : 0.0f;
  }
  const float bias = p.bias && is_there ? __ldg(p.bias + c) : 0.0f;
  wait_for_predecessors();
  if (begin >= rows || !is_there) return;
  const auto input = [&](int t) {
    return t < 0 ? state[(t + p.state_rows) * p.channels + c] : load_at(p.x, segment.begin + t, c);
  };
  constexpr int kPast = kWidth - 1;
  float x[kPast + kRun];
#pragma unroll
  for (int i = 0; i < kPast + kRun; ++i) {
    const int t = begin - kPast + i;
    x[i] = t < rows && i + width >= kWidth ? input(t) : 0.0f;
  }
#pragma unroll
  for (int t = 0; t < kRun; ++t) {
    float sum = bias;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum = fmaf(weight[j], x[t + j], sum);
    if (begin + t < rows) store_at(p.y, segment.begin + begin + t, c, silu(sum));
  }
  if (begin > 0) return;
  // In order: what is overwritten is read no more.
  const auto kept = static_cast<int>(p.state_rows);
  for (int j = 0; j < kept; ++j) state[j * p.channels + c] = input(rows - kept + j);
}

template <int kWidth, int kRun>
Status launch_conv(const ConvArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.channels, kThreads)),
                  static_cast<unsigned>(args.batch.count), static_cast<unsigned>(ceil_div(args.batch.max_rows, kRun)));
  return launch(conv_kernel<kWidth, kRun>, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

}  // namespace

Status causal_conv1d_silu(const ConvArgs& args, Stream stream) noexcept {
  if (args.width < 1 || args.width > kMaxConvWidth || args.state_rows < args.width - 1) return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0) return Status::ok;
  if (args.width > 4) return launch_conv<static_cast<int>(kMaxConvWidth), 16>(args, stream);
  return args.batch.max_rows == 1 ? launch_conv<4, 3>(args, stream) : launch_conv<4, 8>(args, stream);
}

}  // namespace hxq::cuda
