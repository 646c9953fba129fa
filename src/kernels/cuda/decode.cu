// Rows of a matrix as numbers of any type, for products that a library multiplies and for whoever wants the matrix.

#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTable = 256;
constexpr int64_t kUnit = 16;  ///< adjacent weights whose bytes are loaded together

struct Parameters {
  CodebookWeight weight;
  DecodeArgs args;
};

/// Bytes, one weight each, whose rows begin at aligned addresses on both sides.
bool is_plain(const Parameters& p) {
  const CodebookWeight& w = p.weight;
  const Output& out = p.args.out;
  return w.d == 1 && w.index_bits == 8 && w.k <= kTable && w.rank == 0 && !w.channel_scales && w.cols % kUnit == 0 &&
         reinterpret_cast<uintptr_t>(w.indices) % 16 == 0 && reinterpret_cast<uintptr_t>(out.data) % 16 == 0 &&
         out.stride * element_bytes(out.dtype) % 16 == 0;
}

template <class T>
__device__ inline void decode_unit(const T* table, const uint4& bytes, T* out) {
  const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
  constexpr int kStores = static_cast<int>(kUnit * sizeof(T) / sizeof(uint4));
  alignas(16) T made[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) made[i] = table[words[i / 4] >> (8 * (i % 4)) & 0xff];
#pragma unroll
  for (int i = 0; i < kStores; ++i) reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(made)[i];
}

/// A block decodes adjacent rows, then puts their outliers in place.
template <class T>
__global__ void __launch_bounds__(kThreads) plain_kernel(const __grid_constant__ Parameters p) {
  __shared__ T table[kTable];
  let_successors_begin();
  wait_for_predecessors();
  const CodebookWeight& w = p.weight;
  for (int i = static_cast<int>(threadIdx.x); i < w.k; i += kThreads) table[i] = static_cast<T>(w.codebook[i]);
  __syncthreads();
  const int64_t begin = p.args.rows * blockIdx.x / gridDim.x, end = p.args.rows * (blockIdx.x + 1) / gridDim.x;
  const auto* indices = static_cast<const unsigned char*>(w.indices);
  auto* out = static_cast<T*>(p.args.out.data);
  const int64_t units = w.cols / kUnit;
  for (int64_t i = begin * units + threadIdx.x; i < end * units; i += kThreads) {
    const int64_t row = i / units, col = i % units * kUnit;
    const uint4 bytes = *reinterpret_cast<const uint4*>(indices + (p.args.first_row + row) * w.cols + col);
    decode_unit(table, bytes, out + row * p.args.out.stride + col);
  }
  if (!w.outlier_row_begin || begin == end) return;
  __syncthreads();
  const uint32_t* row_begin = w.outlier_row_begin + p.args.first_row;
  int64_t row = begin;
  for (uint32_t i = row_begin[begin] + threadIdx.x; i < row_begin[end]; i += kThreads) {
    while (i >= row_begin[row + 1]) ++row;
    const int64_t col = w.outlier_col[i];
    const float level = w.codebook[indices[(p.args.first_row + row) * w.cols + col]];
    out[row * p.args.out.stride + col] = static_cast<T>(level + w.outlier_change[i]);
  }
}

/// Any matrix: a block has a row.
__global__ void __launch_bounds__(kThreads) any_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const CodebookWeight& w = p.weight;
  const auto* indices = static_cast<const uint8_t*>(w.indices);
  const int64_t row = p.args.first_row + blockIdx.x;
  const auto put = [&](int64_t col, float change) {
    float value = codebook_level(indices, w.index_bits, w.codebook, w.d, row * w.cols + col) + change;
    for (int n = 0; n < w.rank; ++n)
      value = fmaf(w.low_rank_u[row * w.rank + n], w.low_rank_vt[n * w.cols + col], value);
    store_at(p.args.out, blockIdx.x, col, w.channel_scales ? value / w.channel_scales[col] : value);
  };
  for (int64_t col = threadIdx.x; col < w.cols; col += kThreads) put(col, 0.0f);
  if (!w.outlier_row_begin) return;
  __syncthreads();
  for (uint32_t i = w.outlier_row_begin[row] + threadIdx.x; i < w.outlier_row_begin[row + 1]; i += kThreads) {
    put(w.outlier_col[i], w.outlier_change[i]);
  }
}

template <class T>
Status launch_plain(const Parameters& p, Stream stream) {
  const int64_t most = 8 * int64_t{current_device().multiprocessors};
  const int64_t blocks = p.args.rows < most ? p.args.rows : most;
  return launch(plain_kernel<T>, {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)}, stream, p);
}

}  // namespace

Status decode_rows(const CodebookWeight& weight, const DecodeArgs& args, Stream stream) noexcept {
  if (args.first_row < 0 || args.rows < 0 || args.rows > weight.rows - args.first_row) return Status::invalid_value;
  if (!is_activation(args.out.dtype)) return Status::invalid_value;
  if (args.rows == 0 || weight.cols == 0) return Status::ok;
  const Parameters p{.weight = weight, .args = args};
  if (!is_plain(p)) {
    const LaunchShape by_row{.grid = dim3(static_cast<unsigned>(args.rows)), .block = dim3(kThreads)};
    return launch(any_kernel, by_row, stream, p);
  }
  if (args.out.dtype == DType::f32) return launch_plain<float>(p, stream);
  return args.out.dtype == DType::bf16 ? launch_plain<__nv_bfloat16>(p, stream) : launch_plain<__half>(p, stream);
}

}  // namespace hxq::cuda
