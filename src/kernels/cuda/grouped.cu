// Grouped matrices but for their GEMV: which kernel multiplies, rows, prompts, and what no other kernel takes.

#include <algorithm>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/grouped_gemv.cuh"
#include "kernels/cuda/grouped_plan.h"
#include "kernels/cuda/linear_parts.cuh"
#include "kernels/cuda/prefill.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 8;       ///< adjacent columns of a thread: whole bytes, and one scale
constexpr int kAnyTokens = 4;  ///< that a warp of the kernel for any matrix multiplies a decoded weight with
constexpr int kTable = 256;

/// Levels and scale levels in shared memory.
struct Tables {
  float level[kTable], scale[kTable];

  __device__ void fill(const GroupedWeight& w) {
    for (int i = static_cast<int>(threadIdx.x); i < kTable; i += kThreads) {
      if (i < 1 << w.bits) level[i] = w.levels[i];
      scale[i] = w.scale_levels[i];
    }
    __syncthreads();
  }
};

/// 8 adjacent weights of a row without its low-rank term; those behind its end mean nothing.
__device__ inline void decode_unit(const GroupedWeight& w, const Tables& tables, int64_t row, int64_t unit,
                                   float (&out)[kUnit]) {
  const auto* const indices = static_cast<const unsigned char*>(w.indices);
  const unsigned char* const last = indices + w.rows * w.row_bytes() - 1;
  const unsigned char* const from = indices + row * w.row_bytes() + unit * w.bits;
  uint32_t words[2];
  load_words_unaligned(from, last, words);
  const uint64_t bytes = static_cast<uint64_t>(words[1]) << 32 | words[0];
  const float scale = tables.scale[w.scales[row * w.groups() + unit * kUnit / w.group]];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) out[i] = scale * tables.level[grouped_index(bytes, w.bits, i)];
}

/// out[i, :] = row ids[i], or first_row + i where ids is null.
struct Rows {
  const int32_t* ids = nullptr;
  int64_t first_row = 0;
  int64_t count = 0;
  Output out;
};

__global__ void __launch_bounds__(kThreads)
    grouped_rows_kernel(const __grid_constant__ GroupedWeight w, const __grid_constant__ Rows p) {
  __shared__ Tables tables;
  let_successors_begin();
  tables.fill(w);
  wait_for_predecessors();
  const bool whole = is_aligned(p.out.data, 16) && p.out.stride % kUnit == 0;
  for (int64_t i = blockIdx.x; i < p.count; i += gridDim.x) {
    const int64_t row = p.ids ? int64_t{p.ids[i]} : p.first_row + i;
    for (int64_t unit = threadIdx.x; unit * kUnit < w.cols; unit += kThreads) {
      float value[kUnit] = {};
      const int64_t col = unit * kUnit;
      const int count = static_cast<int>(w.cols - col < kUnit ? w.cols - col : kUnit);
      if (row >= 0) {
        decode_unit(w, tables, row, unit, value);
        for (int n = 0; n < w.rank; ++n) {
#pragma unroll
          for (int j = 0; j < kUnit; ++j) {
            if (j < count)
              value[j] = fmaf(w.low_rank_u[row * w.rank + n], w.low_rank_vt[n * w.cols + col + j], value[j]);
          }
        }
      }
      const int64_t at = i * p.out.stride + col;
      if (whole && count == kUnit && p.out.dtype == DType::bf16) {
        __nv_bfloat162 pairs[kUnit / 2];
#pragma unroll
        for (int j = 0; j < kUnit / 2; ++j) pairs[j] = __floats2bfloat162_rn(value[2 * j], value[2 * j + 1]);
        *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.out.data) + at) =
            *reinterpret_cast<const uint4*>(pairs);
      } else if (whole && count == kUnit && p.out.dtype == DType::f32) {
        auto* const to = reinterpret_cast<float4*>(static_cast<float*>(p.out.data) + at);
        to[0] = make_float4(value[0], value[1], value[2], value[3]);
        to[1] = make_float4(value[4], value[5], value[6], value[7]);
      } else {
#pragma unroll
        for (int j = 0; j < kUnit; ++j) {
          if (j < count) store_element(p.out.data, p.out.dtype, at + j, value[j]);
        }
      }
    }
  }
}

struct AnyParameters {
  GroupedWeight weight;
  LinearArgs args;
  const float* low_rank_product;  // [tokens, rank]
};

/// Any matrix: a warp has a row.
__global__ void __launch_bounds__(kThreads) any_grouped_kernel(const __grid_constant__ AnyParameters p) {
  __shared__ Tables tables;
  const GroupedWeight& w = p.weight;
  tables.fill(w);
  wait_for_predecessors();
  let_successors_begin();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (row >= w.rows) return;
  for (int64_t first = int64_t{blockIdx.y} * kAnyTokens; first < p.args.tokens;
       first += int64_t{gridDim.y} * kAnyTokens) {
    float sum[kAnyTokens] = {};
    for (int64_t unit = lane; unit * kUnit < w.cols; unit += 32) {
      float value[kUnit];
      decode_unit(w, tables, row, unit, value);
#pragma unroll
      for (int j = 0; j < kUnit; ++j) {
        const int64_t col = unit * kUnit + j;
#pragma unroll
        for (int t = 0; t < kAnyTokens; ++t) {
          if (first + t < p.args.tokens && col < w.cols)
            sum[t] = fmaf(value[j], load_at(p.args.x, first + t, col), sum[t]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kAnyTokens; ++t) {
      const int64_t token = first + t;
      if (token >= p.args.tokens) continue;
      for (int n = lane; n < w.rank; n += 32) {
        sum[t] += w.low_rank_u[row * w.rank + n] * p.low_rank_product[token * w.rank + n];
      }
      float total = sum_lanes(sum[t]);
      if (lane != 0) continue;
      if (p.args.bias) total += p.args.bias[row];
      if (p.args.accumulate) total += load_at(p.args.y, token, row);
      store_at(p.args.y, token, row, total);
    }
  }
}

Status any_grouped_linear(const GroupedWeight& weight, const LinearArgs& args, const float* low_rank_product,
                          Stream stream) {
  const int64_t groups = ceil_div<int64_t>(args.tokens, kAnyTokens);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(weight.rows, kThreads / 32)),
                                       static_cast<unsigned>(groups < 64 ? groups : 64)),
                          .block = dim3(kThreads)};
  return launch(any_grouped_kernel, shape, stream,
                AnyParameters{.weight = weight, .args = args, .low_rank_product = low_rank_product});
}

Status decode(const GroupedWeight& weight, const Rows& rows, Stream stream) {
  if (rows.count == 0 || weight.cols == 0) return Status::ok;
  const int64_t most = 8 * int64_t{current_device().multiprocessors};
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(std::min(rows.count, most))), .block = dim3(kThreads)};
  return launch(grouped_rows_kernel, shape, stream, weight, rows);
}

/// Passes of the GEMV, or of the kernel for any matrix, that take as long as decoding the matrix for cuBLAS.
constexpr int64_t kFastPasses = 5, kExactPasses = 14;

int64_t pass_tokens(const GroupedWeight& weight) {
  const int64_t tokens = grouped_gemv_tokens(weight);
  return tokens > 0 ? tokens : kAnyTokens;
}

/// Numbers that cuBLAS multiplies.
DType panel_dtype(Precision precision) { return precision == Precision::fast ? DType::bf16 : DType::f32; }

bool goes_through_panels(const GroupedWeight& weight, const LinearArgs& args) {
  const bool fast = args.precision == Precision::fast;
  return has_cublas() && args.tokens > (fast ? kFastPasses : kExactPasses) * pass_tokens(weight) &&
         (args.y.dtype == DType::f32 || (fast && args.y.dtype == DType::bf16));
}

size_t panel_bytes(const GroupedWeight& weight, DType dtype) {
  return round_up<256>(static_cast<size_t>(panel_rows(weight.rows, weight.cols, kPanelBytes, dtype) * weight.cols *
                                           element_bytes(dtype)));
}

/// y = W x by decoding panels of rows for cuBLAS, scales and low-rank term included.
Status multiply_panels(const GroupedWeight& weight, const LinearArgs& args, Stream stream) {
  const DType dtype = panel_dtype(args.precision);
  const int64_t most = panel_rows(weight.rows, weight.cols, kPanelBytes, dtype);
  const Output panel{.data = args.workspace.data, .stride = weight.cols, .dtype = dtype};
  Input x = args.x;
  Status status = Status::ok;
  if (x.dtype != dtype || x.stride % 8 != 0 || !is_aligned(x.data, 16)) {
    const Output to{.data = static_cast<char*>(args.workspace.data) + panel_bytes(weight, dtype),
                    .stride = weight.cols,
                    .dtype = dtype};
    status = copy_rows({.from = args.x, .to = to, .rows = args.tokens, .cols = weight.cols}, stream);
    x = {.data = to.data, .stride = to.stride, .dtype = dtype};
  }
  if (args.bias && status == Status::ok) status = start_with_bias(args, weight.rows, stream);
  for (int64_t row = 0; row < weight.rows && status == Status::ok; row += most) {
    const int64_t rows = std::min(most, weight.rows - row);
    status = decode(weight, {.first_row = row, .count = rows, .out = panel}, stream);
    if (status != Status::ok) break;
    Output y = args.y;
    y.data = static_cast<char*>(y.data) + row * element_bytes(y.dtype);
    status = cublas_product(panel.data, rows, weight.cols, x, y, args.tokens, args.accumulate || args.bias, stream);
  }
  return status;
}

}  // namespace

size_t linear_workspace(const GroupedWeight& weight, int64_t tokens) noexcept {
  const size_t low_rank = low_rank_bytes(weight, tokens);
  if (!has_cublas() || tokens <= kFastPasses * pass_tokens(weight)) return low_rank;
  const size_t panel = std::max(panel_bytes(weight, DType::bf16), panel_bytes(weight, DType::f32));
  return std::max(low_rank, panel + static_cast<size_t>(tokens * weight.cols) * sizeof(float));
}

Status linear(const GroupedWeight& weight, const LinearArgs& args, Stream stream) noexcept {
  if (args.tokens < 0 || !is_activation(args.x.dtype) || !is_activation(args.y.dtype) ||
      args.workspace.bytes < linear_workspace(weight, args.tokens)) {
    return Status::invalid_value;
  }
  if (args.tokens == 0 || weight.rows == 0) return Status::ok;
  if (goes_through_panels(weight, args)) return multiply_panels(weight, args, stream);
  const int64_t at_once = grouped_gemv_tokens(weight);
  float* along = nullptr;
  if (weight.rank > 0 && (args.tokens > 1 || weight.rank > kGroupedGemvRank || at_once == 0)) {
    along = static_cast<float*>(args.workspace.data);
    const Status status = multiply_vt(weight, args, nullptr, along, stream);
    if (status != Status::ok) return status;
  }
  if (at_once == 0) return any_grouped_linear(weight, args, along, stream);
  Status status = Status::ok;
  for (int64_t first = 0; first < args.tokens && status == Status::ok; first += at_once) {
    const LinearArgs part = part_of(args, first, std::min(at_once, args.tokens - first));
    const GroupedProduct product{.weight = weight,
                                 .y = part.y,
                                 .bias = args.bias,
                                 .accumulate = args.accumulate,
                                 .low_rank_product = along ? along + first * weight.rank : nullptr};
    status = grouped_gemv({.x = part.x}, part.tokens, {&product, 1}, stream);
  }
  return status;
}

Status gather_rows(const GroupedWeight& weight, const GatherArgs& args, Stream stream) noexcept {
  return decode(weight, {.ids = args.ids, .count = args.count, .out = args.out}, stream);
}

Status decode_rows(const GroupedWeight& weight, const DecodeArgs& args, Stream stream) noexcept {
  if (args.first_row < 0 || args.rows < 0 || args.rows > weight.rows - args.first_row) return Status::invalid_value;
  if (!is_activation(args.out.dtype)) return Status::invalid_value;
  return decode(weight, {.first_row = args.first_row, .count = args.rows, .out = args.out}, stream);
}

}  // namespace hxq::cuda
