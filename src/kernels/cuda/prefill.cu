#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/prefill.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocks = 3;  ///< of a multiprocessor that decode

struct Panel {
  CodebookWeight weight;
  int64_t first_row, rows;
  __nv_bfloat16* out;  // [rows, cols]
};

/// 8 adjacent weights of the panel.
__device__ inline uint4 decode_unit(const SmallTable& table, const uint2& bytes) {
  const uint32_t words[2] = {bytes.x, bytes.y};
  uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float first = table.look_up(words[i / 2], i % 2 * 2), second = table.look_up(words[i / 2], i % 2 * 2 + 1);
    out[i] = __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x5410);
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

/// Rows without scales or a low-rank term, whose bytes are aligned: a run of units, several of which are in flight.
/// Lanes write 16 bytes side by side.
__device__ inline void decode_plain(const SmallTable& table, const void* indices, __nv_bfloat16* out, int64_t units) {
  constexpr int kAtOnce = 4;
  const auto* from = static_cast<const uint2*>(indices);
  auto* to = reinterpret_cast<uint4*>(out);
  for (int64_t begin = threadIdx.x; begin < units; begin += kAtOnce * kThreads) {
    uint2 bytes[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i * kThreads < units) bytes[i] = __ldcs(from + begin + i * kThreads);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i * kThreads < units) to[begin + i * kThreads] = decode_unit(table, bytes[i]);
    }
  }
}

/// An element in full.
__device__ inline float decode_element(const CodebookWeight& w, int64_t row, int64_t col, float change) {
  float value = w.codebook[static_cast<const unsigned char*>(w.indices)[row * w.cols + col]] + change;
  for (int n = 0; n < w.rank; ++n) value = fmaf(w.low_rank_u[row * w.rank + n], w.low_rank_vt[n * w.cols + col], value);
  return w.channel_scales ? value / w.channel_scales[col] : value;
}

/// A block decodes adjacent rows, then puts all their outliers in place.
__global__ void __launch_bounds__(kThreads, kBlocks) decode_kernel(const __grid_constant__ Panel p) {
  const SmallTable table;
  const CodebookWeight& w = p.weight;
  let_successors_begin();
  wait_for_predecessors();
  TableFill<kThreads>(w.codebook, w.k).store([](float level) {
    return __uint_as_float(__bfloat16_as_ushort(__float2bfloat16_rn(level)));
  });
  __syncthreads();
  const int64_t begin = p.first_row + p.rows * blockIdx.x / gridDim.x;
  const int64_t end = p.first_row + p.rows * (blockIdx.x + 1) / gridDim.x;
  const auto* indices = static_cast<const unsigned char*>(w.indices) + begin * w.cols;
  __nv_bfloat16* out = p.out + (begin - p.first_row) * w.cols;
  const int64_t count = (end - begin) * w.cols;
  if (w.rank == 0 && !w.channel_scales && w.cols % 8 == 0 && reinterpret_cast<uintptr_t>(w.indices) % 8 == 0) {
    decode_plain(table, indices, out, count / 8);
  } else {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      out[i] = __float2bfloat16_rn(decode_element(w, begin + i / w.cols, i % w.cols, 0.0f));
    }
  }
  if (!w.outlier_row_begin || begin == end) return;
  __syncthreads();
  int64_t row = begin;
  for (uint32_t i = w.outlier_row_begin[begin] + threadIdx.x; i < w.outlier_row_begin[end]; i += kThreads) {
    while (i >= w.outlier_row_begin[row + 1]) ++row;
    const int64_t col = w.outlier_col[i];
    out[(row - begin) * w.cols + col] = __float2bfloat16_rn(decode_element(w, row, col, w.outlier_change[i]));
  }
}

__global__ void __launch_bounds__(kThreads)
    round_kernel(const __grid_constant__ Input x, int64_t cols, __nv_bfloat16* out) {
  let_successors_begin();
  wait_for_predecessors();
  for (int64_t col = threadIdx.x; col < cols; col += kThreads)
    out[blockIdx.x * cols + col] = __float2bfloat16_rn(load_at(x, blockIdx.x, col));
}

__global__ void __launch_bounds__(kThreads)
    start_with_bias_kernel(const __grid_constant__ Output y, const float* bias, int64_t rows, bool accumulate) {
  let_successors_begin();
  wait_for_predecessors();
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    store_at(y, blockIdx.x, row, (accumulate ? load_at(y, blockIdx.x, row) : 0.0f) + bias[row]);
  }
}

int64_t panel_rows(const CodebookWeight& weight, int64_t panel_bytes) {
  const int64_t fit = panel_bytes / (2 * weight.cols) / 128 * 128;
  const int64_t most = fit > 128 ? fit : 128;
  // Equal panels: a short last one would leave multiprocessors idle.
  const int64_t count = ceil_div(weight.rows, most);
  return ceil_div(ceil_div(weight.rows, count), int64_t{128}) * 128;
}

}  // namespace

bool supports_prefill(const CodebookWeight& weight, const LinearArgs& args) noexcept {
  return args.precision == Precision::fast && args.tokens >= kPrefillTokens && args.y.dtype != DType::f16 &&
         weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.cols % 8 == 0 && has_cublas();
}

size_t prefill_workspace(const CodebookWeight& weight, int64_t tokens) noexcept {
  if (tokens < kPrefillTokens || !has_cublas()) return 0;
  return static_cast<size_t>(panel_rows(weight, kPanelBytes) * weight.cols + tokens * weight.cols) * 2;
}

Status prefill_product(const CodebookWeight& weight, const LinearArgs& args, Stream stream,
                       int64_t panel_bytes) noexcept {
  const int64_t most = panel_rows(weight, panel_bytes);
  auto* panel = static_cast<__nv_bfloat16*>(args.workspace.data);
  Input x = args.x;
  const auto tokens = static_cast<unsigned>(args.tokens);
  Status status = Status::ok;
  if (x.dtype != DType::bf16 || x.stride % 8 != 0 || reinterpret_cast<uintptr_t>(x.data) % 16 != 0) {
    __nv_bfloat16* rounded = panel + most * weight.cols;
    status =
        launch(round_kernel, {.grid = dim3(tokens), .block = dim3(kThreads)}, stream, args.x, weight.cols, rounded);
    x = {.data = rounded, .stride = weight.cols, .dtype = DType::bf16};
  }
  if (args.bias && status == Status::ok) {
    status = launch(start_with_bias_kernel, {.grid = dim3(tokens), .block = dim3(kThreads)}, stream, args.y, args.bias,
                    weight.rows, args.accumulate);
  }
  const auto blocks = static_cast<unsigned>(kBlocks * current_device().multiprocessors);
  for (int64_t row = 0; row < weight.rows && status == Status::ok; row += most) {
    const int64_t rows = weight.rows - row < most ? weight.rows - row : most;
    status = launch(decode_kernel, {.grid = dim3(blocks), .block = dim3(kThreads), .shared_bytes = SmallTable::kBytes},
                    stream, Panel{.weight = weight, .first_row = row, .rows = rows, .out = panel});
    if (status != Status::ok) break;
    Output y = args.y;
    y.data = static_cast<char*>(y.data) + row * element_bytes(y.dtype);
    status = cublas_product(panel, rows, weight.cols, x, y, args.tokens, args.accumulate || args.bias, stream);
  }
  return status;
}

}  // namespace hxq::cuda
