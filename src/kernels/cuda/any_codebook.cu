// Products with codebook matrices that the fast kernels do not take: vector codebooks, more than 256 codewords, very
// many columns. One warp a row; weights are decoded as the format's page says, element by element.

#include "kernels/cuda/any_codebook.cuh"
#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 4;  ///< that a warp multiplies a decoded weight with

struct Parameters {
  CodebookWeight weight;
  LinearArgs args;
  const float* low_rank_product;  // [tokens, rank]
};

__device__ inline float scaled_x(const Parameters& p, int64_t token, int64_t col) {
  const float x = load_at(p.args.x, token, col);
  return p.weight.channel_scales ? x / p.weight.channel_scales[col] : x;
}

__device__ inline float row_times_token(const Parameters& p, int64_t row, int64_t token, int lane) {
  float sum = 0;
  if (p.weight.outlier_row_begin) {
    for (uint32_t i = p.weight.outlier_row_begin[row] + lane; i < p.weight.outlier_row_begin[row + 1]; i += 32) {
      sum += p.weight.outlier_change[i] * scaled_x(p, token, p.weight.outlier_col[i]);
    }
  }
  for (int n = lane; n < p.weight.rank; n += 32) {
    sum += p.weight.low_rank_u[row * p.weight.rank + n] * p.low_rank_product[token * p.weight.rank + n];
  }
  return sum;
}

__global__ void __launch_bounds__(kWarps * 32) any_codebook_kernel(const __grid_constant__ Parameters p) {
  wait_for_predecessors();
  let_successors_begin();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.weight.rows) return;
  const auto* indices = static_cast<const uint8_t*>(p.weight.indices);
  for (int64_t first = int64_t{blockIdx.y} * kTokens; first < p.args.tokens; first += int64_t{gridDim.y} * kTokens) {
    float sum[kTokens] = {};
    for (int64_t col = lane; col < p.weight.cols; col += 32) {
      const float weight =
          codebook_level(indices, p.weight.index_bits, p.weight.codebook, p.weight.d, row * p.weight.cols + col);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (first + t < p.args.tokens) sum[t] = fmaf(weight, scaled_x(p, first + t, col), sum[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const int64_t token = first + t;
      if (token >= p.args.tokens) continue;
      float total = sum_lanes(sum[t] + row_times_token(p, row, token, lane));
      if (lane != 0) continue;
      if (p.args.bias) total += p.args.bias[row];
      if (p.args.accumulate) total += load_at(p.args.y, token, row);
      store_at(p.args.y, token, row, total);
    }
  }
}

}  // namespace

Status any_codebook_linear(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                           Stream stream) noexcept {
  const int64_t groups = ceil_div<int64_t>(args.tokens, kTokens);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(weight.rows, kWarps)),
                                       static_cast<unsigned>(groups < 64 ? groups : 64)),
                          .block = dim3(kWarps * 32)};
  return launch(any_codebook_kernel, shape, stream,
                Parameters{.weight = weight, .args = args, .low_rank_product = low_rank_product});
}

}  // namespace hxq::cuda
