#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gradients.h"

namespace hxq::cuda {
namespace {

constexpr int kTokens = 8;     ///< that a decoded weight is multiplied with
constexpr int kCols = 32;      ///< of a block: the lanes of its warps
constexpr int kRowWarps = 8;   ///< that take turns with the rows
constexpr int kLevels = 1024;  ///< of a codebook whose gradient is summed in shared memory

template <class Weight>
struct TransposedParameters {
  Weight weight;
  LinearTransposedArgs args;
};

/// An element without its low-rank term and channel scale.
__device__ inline float element_of(const CodebookWeight& w, int64_t row, int64_t col) {
  const auto* indices = static_cast<const uint8_t*>(w.indices);
  const float weight = codebook_level(indices, w.index_bits, w.codebook, w.d, row * w.cols + col);
  if (!w.outlier_row_begin) return weight;
  // Columns ascend within a row: the first that is not smaller.
  uint32_t low = w.outlier_row_begin[row], high = w.outlier_row_begin[row + 1];
  const uint32_t end = high;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (w.outlier_col[middle] < col)
      low = middle + 1;
    else
      high = middle;
  }
  return low < end && w.outlier_col[low] == col ? weight + w.outlier_change[low] : weight;
}

__device__ inline float element_of(const GroupedWeight& w, int64_t row, int64_t col) {
  const auto* from = static_cast<const uint8_t*>(w.indices) + row * w.row_bytes() + col * w.bits / 8;
  const int shift = static_cast<int>(col * w.bits % 8);
  const uint32_t both = from[0] | (shift + w.bits > 8 ? from[1] << 8 : 0);
  return w.scale_levels[w.scales[row * w.groups() + col / w.group]] * w.levels[both >> shift & ((1u << w.bits) - 1)];
}

/// Warps take turns with the rows, lanes have a column each; what outliers change is added row by row as well.
template <class Weight>
__global__ void __launch_bounds__(kCols* kRowWarps)
    transposed_kernel(const __grid_constant__ TransposedParameters<Weight> p) {
  __shared__ float shared[kRowWarps][kTokens][kCols];
  let_successors_begin();
  wait_for_predecessors();
  const Weight& w = p.weight;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t col = int64_t{blockIdx.x} * kCols + lane, first = int64_t{blockIdx.y} * kTokens;
  const bool is_there = col < w.cols;
  float sum[kTokens] = {};
  for (int64_t row = warp; row < w.rows && is_there; row += kRowWarps) {
    float weight = element_of(w, row, col);
    for (int n = 0; n < w.rank; ++n)
      weight = fmaf(w.low_rank_u[row * w.rank + n], w.low_rank_vt[n * w.cols + col], weight);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t < p.args.tokens) sum[t] = fmaf(weight, load_at(p.args.g, first + t, row), sum[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) shared[warp][t][lane] = sum[t];
  __syncthreads();
  const int64_t token = first + warp;
  if (token >= p.args.tokens || !is_there) return;
  float total = 0;
  for (int i = 0; i < kRowWarps; ++i) total += shared[i][warp][lane];
  if constexpr (requires { w.channel_scales; }) {
    if (w.channel_scales) total /= w.channel_scales[col];
  }
  store_at(p.args.dx, token, col, total);
}

struct CodebookParameters {
  CodebookWeight weight;
  CodebookGradientArgs args;
};

/// One block a row at a time; a thread takes columns in turn and adds what they give to the block's own sums.
__global__ void __launch_bounds__(256) codebook_gradient_kernel(const __grid_constant__ CodebookParameters p) {
  __shared__ float sums[kLevels];
  let_successors_begin();
  wait_for_predecessors();
  const CodebookWeight& w = p.weight;
  const int entries = w.k * w.d;
  const bool is_small = entries <= kLevels;
  for (int i = static_cast<int>(threadIdx.x); is_small && i < entries; i += 256) sums[i] = 0;
  __syncthreads();
  const auto* indices = static_cast<const uint8_t*>(w.indices);
  for (int64_t row = blockIdx.x; row < w.rows; row += gridDim.x) {
    for (int64_t col = threadIdx.x; col < w.cols; col += 256) {
      if (is_outlier(w, row, col)) continue;
      float product = 0;
      for (int64_t t = 0; t < p.args.tokens; ++t)
        product = fmaf(load_at(p.args.g, t, row), load_at(p.args.x, t, col), product);
      if (w.channel_scales) product /= w.channel_scales[col];
      const int64_t position = row * w.cols + col;
      const int64_t entry = index_at(indices, w.index_bits, position / w.d) * w.d + position % w.d;
      atomicAdd(is_small ? sums + entry : p.args.gradient + entry, product);
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); is_small && i < entries; i += 256)
    atomicAdd(p.args.gradient + i, sums[i]);
}

template <class Weight>
Status multiply_transposed(const Weight& weight, const LinearTransposedArgs& args, Stream stream) {
  if (args.tokens == 0 || weight.cols == 0) return Status::ok;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(weight.cols, kCols)),
                  static_cast<unsigned>(ceil_div<int64_t>(args.tokens, kTokens)));
  return launch(transposed_kernel<Weight>, {.grid = grid, .block = dim3(kCols * kRowWarps)}, stream,
                TransposedParameters<Weight>{.weight = weight, .args = args});
}

}  // namespace

Status linear_transposed(const CodebookWeight& weight, const LinearTransposedArgs& args, Stream stream) noexcept {
  return multiply_transposed(weight, args, stream);
}

Status linear_transposed(const GroupedWeight& weight, const LinearTransposedArgs& args, Stream stream) noexcept {
  return multiply_transposed(weight, args, stream);
}

Status codebook_gradient(const CodebookWeight& weight, const CodebookGradientArgs& args, Stream stream) noexcept {
  if (args.tokens == 0 || weight.rows == 0) return Status::ok;
  const int64_t most = 8 * int64_t{current_device().multiprocessors};
  return launch(codebook_gradient_kernel,
                {.grid = dim3(static_cast<unsigned>(weight.rows < most ? weight.rows : most)), .block = dim3(256)},
                stream, CodebookParameters{.weight = weight, .args = args});
}

}  // namespace hxq::cuda
