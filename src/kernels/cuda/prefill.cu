#include <algorithm>

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/linear_parts.cuh"
#include "kernels/cuda/prefill.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocks = 3;  ///< of a multiprocessor that decode

struct Panel {
  CodebookWeight weight;
  int64_t first_row;
  BlockShare share;    ///< of the panel's rows
  __nv_bfloat16* out;  // [rows, cols]
};

/// x, to be rounded.
struct Rounding {
  Input x;                       // [tokens, cols]
  int64_t tokens = 0;            ///< 0: nothing is to be done
  __nv_bfloat16* out = nullptr;  // [tokens, cols]
  bool aligned = true;           ///< rows of F32 can be read 16 bytes at a time
  int lanes_log2 = 9;            ///< threads that share a row
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
class PlainDecoder {
 public:
  __device__ PlainDecoder(const void* indices, int units)
      : from_(static_cast<const uint2*>(indices) + threadIdx.x), units_(units - static_cast<int>(threadIdx.x)) {}

  /// Asks for the thread's first units.
  __device__ void start() { fetch(0); }
  __device__ void finish(const SmallTable& table, __nv_bfloat16* out) {
    auto* const to = reinterpret_cast<uint4*>(out) + threadIdx.x;
    for (int begin = 0; begin < units_; begin += kAtOnce * kThreads) {
      if (begin > 0) fetch(begin);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (begin + i * kThreads < units_) to[begin + i * kThreads] = decode_unit(table, bytes_[i]);
      }
    }
  }

 private:
  static constexpr int kAtOnce = 4;

  __device__ void fetch(int begin) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i * kThreads < units_) bytes_[i] = __ldcs(from_ + begin + i * kThreads);
    }
  }

  const uint2* const from_;
  const int units_;
  uint2 bytes_[kAtOnce] = {};
};

/// The block's share of x.
__device__ inline void round_rows(const Rounding& r, int cols) {
  const int lanes = 1 << r.lanes_log2, lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t rows_at_once = kThreads >> r.lanes_log2;
#pragma unroll 1
  for (int64_t row = blockIdx.x * rows_at_once + (threadIdx.x >> r.lanes_log2); row < r.tokens;
       row += gridDim.x * rows_at_once) {
#pragma unroll 1
    for (int col = 8 * lane; col < cols; col += 8 * lanes) {
      float x[8];
      if (r.x.dtype == DType::f32 && r.aligned) {
        const auto* from =
            reinterpret_cast<const float4*>(static_cast<const float*>(r.x.data) + row * r.x.stride + col);
        *reinterpret_cast<float4*>(x) = from[0];
        *reinterpret_cast<float4*>(x + 4) = from[1];
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = load_at(r.x, row, col + i);
      }
      __nv_bfloat162 out[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      *reinterpret_cast<uint4*>(r.out + row * cols + col) = *reinterpret_cast<const uint4*>(out);
    }
  }
}

/// An element in full.
__device__ inline float decode_element(const CodebookWeight& w, int64_t row, int col, float change) {
  float value = w.codebook[static_cast<const unsigned char*>(w.indices)[row * w.cols + col]] + change;
  for (int n = 0; n < w.rank; ++n) value = fmaf(w.low_rank_u[row * w.rank + n], w.low_rank_vt[n * w.cols + col], value);
  return w.channel_scales ? value / w.channel_scales[col] : value;
}

/// A block decodes adjacent rows, then puts all their outliers in place, and rounds its share of x.
__global__ void __launch_bounds__(kThreads, kBlocks)
    decode_kernel(const __grid_constant__ Panel p, const __grid_constant__ Rounding rounding) {
  const SmallTable table;
  const CodebookWeight& w = p.weight;
  let_successors_begin();
  const int64_t begin = p.share.begin(static_cast<int>(blockIdx.x));
  const int rows = p.share.count(static_cast<int>(blockIdx.x)), cols = static_cast<int>(w.cols);
  const int64_t first = p.first_row + begin;
  __nv_bfloat16* const out = p.out + begin * cols;
  const bool plain =
      w.rank == 0 && !w.channel_scales && w.cols % 8 == 0 && reinterpret_cast<uintptr_t>(w.indices) % 8 == 0;
  PlainDecoder decoder(static_cast<const unsigned char*>(w.indices) + first * cols, plain ? rows * (cols / 8) : 0);
  decoder.start();
  TableFill<kThreads>(w.codebook, w.k).store([](float level) {
    return __uint_as_float(__bfloat16_as_ushort(__float2bfloat16_rn(level)));
  });
  __syncthreads();
  wait_for_predecessors();
  decoder.finish(table, out);
  if (!plain) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < rows * cols; i += kThreads) {
      out[i] = __float2bfloat16_rn(decode_element(w, first + i / cols, i % cols, 0.0f));
    }
  }
  round_rows(rounding, cols);
  if (!w.outlier_row_begin || rows == 0) return;
  __syncthreads();
  const uint32_t* const row_begin = w.outlier_row_begin + first;
  int row = 0;
#pragma unroll 1
  for (uint32_t i = row_begin[0] + threadIdx.x; i < row_begin[rows]; i += kThreads) {
    while (i >= row_begin[row + 1]) ++row;
    const int col = static_cast<int>(w.outlier_col[i]);
    out[row * cols + col] = __float2bfloat16_rn(decode_element(w, first + row, col, w.outlier_change[i]));
  }
}

__global__ void __launch_bounds__(kThreads)
    start_with_bias_kernel(const __grid_constant__ Output y, const float* bias, int64_t rows, bool accumulate) {
  let_successors_begin();
  wait_for_predecessors();
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    store_at(y, blockIdx.x, row, (accumulate ? load_at(y, blockIdx.x, row) : 0.0f) + bias[row]);
  }
}

/// Whether the outputs of `next` are the columns after those of `product`, and made in the same way.
bool continues(const FusedProduct& product, const FusedProduct& next) {
  const auto* end = static_cast<const char*>(product.y.data) + product.weight.rows * element_bytes(product.y.dtype);
  return next.y.data == end && next.y.dtype == product.y.dtype && next.y.stride == product.y.stride &&
         (next.accumulate || next.bias) == (product.accumulate || product.bias);
}

}  // namespace

int64_t panel_rows(int64_t rows, int64_t cols, int64_t panel_bytes, DType dtype) noexcept {
  const int64_t fit = panel_bytes / (element_bytes(dtype) * cols) / 128 * 128;
  const int64_t most = fit > 128 ? fit : 128;
  // Equal panels: a short last one would leave multiprocessors idle.
  const int64_t count = ceil_div(rows, most);
  return ceil_div(ceil_div(rows, count), int64_t{128}) * 128;
}

Status start_with_bias(const LinearArgs& args, int64_t rows, Stream stream) noexcept {
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.tokens)), .block = dim3(kThreads)};
  return launch(start_with_bias_kernel, shape, stream, args.y, args.bias, rows, args.accumulate);
}

bool supports_prefill(const CodebookWeight& weight, const LinearArgs& args) noexcept {
  return args.precision == Precision::fast && args.tokens >= kPrefillTokens && args.y.dtype != DType::f16 &&
         weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.cols % 8 == 0 && has_cublas();
}

size_t prefill_workspace(const CodebookWeight& weight, int64_t tokens) noexcept {
  if (weight.rows == 0 || tokens < kPrefillTokens || !has_cublas()) return 0;
  return static_cast<size_t>(panel_rows(weight.rows, weight.cols, kPanelBytes, DType::bf16) * weight.cols +
                             tokens * weight.cols) *
         2;
}

Status prefill_products(const LinearArgs& args, const XSource& source, std::span<const FusedProduct> products,
                        Stream stream, int64_t panel_bytes) noexcept {
  const int64_t cols = products[0].weight.cols;
  auto* const rounded = static_cast<__nv_bfloat16*>(args.workspace.data);
  auto* const panel = rounded + args.tokens * cols;
  const Output made{.data = rounded, .stride = cols, .dtype = DType::bf16};
  Input x{.data = made.data, .stride = made.stride, .dtype = made.dtype};
  Rounding rounding;
  Status status = make_x(source, stream, &made);
  const bool is_made = source.norm != nullptr || source.activation != nullptr;  // and rounded by what makes it
  if (!is_made && args.x.dtype == DType::bf16 && args.x.stride % 8 == 0 && is_aligned(args.x.data, 16)) {
    x = args.x;
  } else if (!is_made) {
    rounding = {.x = args.x,
                .tokens = args.tokens,
                .out = rounded,
                .aligned = args.x.stride % 4 == 0 && is_aligned(args.x.data, 16)};
    while (rounding.lanes_log2 > 0 && int64_t{1} << (rounding.lanes_log2 - 1) >= cols / 8) --rounding.lanes_log2;
  }
  const auto blocks = static_cast<unsigned>(kBlocks * current_device().multiprocessors);
  const auto decode = [&](const CodebookWeight& weight, int64_t row, int64_t rows, __nv_bfloat16* to) {
    if (status != Status::ok) return;
    status = launch(decode_kernel, {.grid = dim3(blocks), .block = dim3(kThreads), .shared_bytes = SmallTable::kBytes},
                    stream, Panel{.weight = weight, .first_row = row, .share = {rows, blocks}, .out = to}, rounding);
    rounding.tokens = 0;
  };
  const auto multiply = [&](const FusedProduct& product, int64_t row, int64_t rows) {
    if (status != Status::ok) return;
    Output y = product.y;
    y.data = static_cast<char*>(y.data) + row * element_bytes(y.dtype);
    status = cublas_product(panel, rows, cols, x, y, args.tokens, product.accumulate || product.bias, stream);
  };
  int64_t room = 0;  // rows
  for (const FusedProduct& product : products) {
    room = std::max(room, panel_rows(product.weight.rows, cols, panel_bytes, DType::bf16));
    if (product.bias && status == Status::ok) {
      status = start_with_bias(args_of(product, args), product.weight.rows, stream);
    }
  }
  for (size_t i = 0; i < products.size();) {
    const FusedProduct& first = products[i];
    const int64_t rows = first.weight.rows, most = panel_rows(rows, cols, panel_bytes, DType::bf16);
    if (rows > most) {
      for (int64_t row = 0; row < rows; row += most) {
        decode(first.weight, row, std::min(most, rows - row), panel);
        multiply(first, row, std::min(most, rows - row));
      }
      ++i;
      continue;
    }
    // Outputs that lie side by side are one product: small ones would leave multiprocessors idle.
    int64_t together = 0;
    do {
      decode(products[i].weight, 0, products[i].weight.rows, panel + together * cols);
      together += products[i].weight.rows;
      ++i;
    } while (i < products.size() && continues(products[i - 1], products[i]) &&
             together + products[i].weight.rows <= room);
    multiply(first, 0, together);
  }
  return status;
}

}  // namespace hxq::cuda
