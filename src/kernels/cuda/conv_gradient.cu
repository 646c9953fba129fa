#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_gradients.cuh"
#include "kernels/cuda/sequence_gradients.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRun = 16;  ///< tokens of a thread

/// A thread has one channel and a run of tokens, and computes what lies before the SiLU again: for its own tokens and
/// those after them that its inputs count in. kWidth: taps of the filter, at most.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) conv_gradient_kernel(const __grid_constant__ ConvGradientArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= p.channels) return;
  const int first = static_cast<int>(blockIdx.z) * kRun;
  const int64_t row = int64_t{blockIdx.y} * p.tokens;
  constexpr int kPast = kWidth - 1;
  const auto width = static_cast<int>(p.width);
  float weight[kWidth];  // the last one is that of the token itself
#pragma unroll
  for (int j = 0; j < kWidth; ++j) weight[j] = j + width >= kWidth ? p.weight[c * width + j + width - kWidth] : 0.0f;
  const float bias = p.bias ? p.bias[c] : 0.0f;
  float x[kPast + kRun + kPast];
#pragma unroll
  for (int i = 0; i < kPast + kRun + kPast; ++i) {
    const int t = first - kPast + i;
    x[i] = t >= 0 && t < p.tokens ? p.x[(row + t) * p.x_stride + c] : 0.0f;
  }
  float ds[kRun + kPast];
#pragma unroll
  for (int i = 0; i < kRun + kPast; ++i) {
    float sum = bias;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum = fmaf(weight[j], x[i + j], sum);
    const float s = sigmoid(sum);
    ds[i] = first + i < p.tokens ? p.g[(row + first + i) * p.channels + c] * s * fmaf(sum, 1.0f - s, 1.0f) : 0.0f;
  }
  float dweight[kWidth] = {}, dbias = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    float dx = 0;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      dx = fmaf(weight[j], ds[i + kPast - j], dx);
      dweight[j] = fmaf(ds[i], x[i + j], dweight[j]);
    }
    dbias += ds[i];
    if (first + i < p.tokens) p.dx[(row + first + i) * p.channels + c] = dx;
  }
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    if (j + width >= kWidth) atomicAdd(p.dweight + c * width + j + width - kWidth, dweight[j]);
  }
  atomicAdd(p.dbias + c, dbias);
}

template <int kWidth>
Status launch_gradient(const ConvGradientArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.channels, kThreads)), static_cast<unsigned>(args.batch),
                  static_cast<unsigned>(ceil_div(args.tokens, kRun)));
  return launch(conv_gradient_kernel<kWidth>, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

}  // namespace

Status causal_conv1d_silu_gradient(const ConvGradientArgs& args, Stream stream) noexcept {
  if (args.width < 1 || args.width > kMaxConvWidth) return Status::invalid_value;
  Status status = clear_floats(args.dweight, args.channels * args.width, stream);
  if (status == Status::ok) status = clear_floats(args.dbias, args.channels, stream);
  if (status != Status::ok) return status;
  if (args.batch == 0 || args.tokens == 0 || args.channels == 0) return Status::ok;
  return args.width <= 4 ? launch_gradient<4>(args, stream)
                         : launch_gradient<static_cast<int>(kMaxConvWidth)>(args, stream);
}

}  // namespace hxq::cuda
