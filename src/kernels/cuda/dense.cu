// Products with dense matrices of any element type: one warp a row and up to eight tokens, sums in float.

#include "kernels/cuda/dense.cuh"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 8;  ///< that a warp multiplies a row with at once
constexpr int kRun = 16;    ///< adjacent columns of a lane

struct Parameters {
  DenseWeight weight;
  LinearArgs args;
  const float* input_scales;  // [cols] that x is divided by, or null
};

template <int kCount>
__device__ inline void multiply_row(const Parameters& p, int64_t row, int64_t first, int lane) {
  float sum[kCount] = {};
  for (int64_t col = int64_t{lane} * kRun; col < p.weight.cols; col += 32 * kRun) {
    const int64_t left = p.weight.cols - col;
    const int count = static_cast<int>(left < kRun ? left : kRun);
    float w[kRun];
    load_run(p.weight.data, p.weight.dtype, row * p.weight.cols + col, count, w);
    if (p.input_scales) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        if (i < count) w[i] /= p.input_scales[col + i];
      }
    }
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      float x[kRun];
      load_run(p.args.x.data, p.args.x.dtype, (first + t) * p.args.x.stride + col, count, x);
#pragma unroll
      for (int i = 0; i < kRun; ++i) sum[t] = fmaf(w[i], x[i], sum[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kCount; ++t) {
    float total = sum_lanes(sum[t]);
    if (lane != 0) continue;
    if (p.args.bias) total += p.args.bias[row];
    if (p.args.accumulate) total += load_at(p.args.y, first + t, row);
    store_at(p.args.y, first + t, row, total);
  }
}

__global__ void __launch_bounds__(kWarps * 32) dense_kernel(const __grid_constant__ Parameters p) {
  wait_for_predecessors();
  let_successors_begin();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.weight.rows) return;
  int64_t first = int64_t{blockIdx.y} * kTokens;
  for (; first + kTokens <= p.args.tokens; first += int64_t{gridDim.y} * kTokens)
    multiply_row<kTokens>(p, row, first, lane);
  for (; first < p.args.tokens; ++first) multiply_row<1>(p, row, first, lane);
}

}  // namespace

Status dense_linear(const DenseWeight& weight, const LinearArgs& args, const float* input_scales,
                    Stream stream) noexcept {
  const int64_t groups = ceil_div<int64_t>(args.tokens, kTokens);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(weight.rows, kWarps)),
                                       static_cast<unsigned>(groups < 64 ? groups : 64)),
                          .block = dim3(kWarps * 32)};
  return launch(dense_kernel, shape, stream, Parameters{.weight = weight, .args = args, .input_scales = input_scales});
}

}  // namespace hxq::cuda
