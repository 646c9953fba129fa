#include "kernels/cuda/device.cuh"
#include "kernels/cuda/pack_x.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kRun = 16;  ///< adjacent columns of a thread

struct Parameters {
  Input x;
  const float* channel_scales;
  int64_t tokens;
  int64_t cols;
  GemmPlan plan;
  PackedX out;
};

__device__ inline void load_scaled(const Parameters& p, int64_t token, int64_t col, float (&v)[kRun]) {
  const int64_t left = token < p.tokens ? p.cols - col : 0;
  const int count = static_cast<int>(left < 0 ? 0 : left < kRun ? left : kRun);
  load_run(p.x.data, p.x.dtype, token * p.x.stride + col, count, v);
  if (!p.channel_scales) return;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < count) v[i] /= p.channel_scales[col + i];
  }
}

__device__ inline void store_run(const Parameters& p, int64_t token, int64_t col, float inverse_scale,
                                 const float (&v)[kRun]) {
  const int tokens = p.plan.tile_tokens();
  const auto slot = static_cast<int>(token % tokens);
  auto* chunk = static_cast<__half*>(p.out.packed) +
                (token / tokens * p.plan.chunks + col / kChunkCols) * p.plan.columns * kChunkCols;
#pragma unroll
  for (int i = 0; i < kRun; i += 2) {  // neighbours stay neighbours
    const int place = packed_place(static_cast<int>(col % kChunkCols) + i);
    const float scaled[2] = {v[i] * inverse_scale, v[i + 1] * inverse_scale};
    const __half2 upper = __floats2half2_rn(scaled[0], scaled[1]);
    *reinterpret_cast<__half2*>(chunk + packed_offset(slot, place)) = upper;
    if (p.plan.parts == 2) {
      *reinterpret_cast<__half2*>(chunk + packed_offset(slot + tokens, place)) = __floats2half2_rn(
          (scaled[0] - __low2float(upper)) / kLowPartScale, (scaled[1] - __high2float(upper)) / kLowPartScale);
    }
  }
  if (!p.out.transposed) return;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (col + i < p.cols) p.out.transposed[(col + i) * p.out.transposed_stride + token] = v[i];
  }
}

/// Several blocks a token, each of which looks for its largest element; tokens that fill up the last tile are zeros.
__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ Parameters p) {
  __shared__ float shared[32];
  let_successors_begin();
  wait_for_predecessors();
  const int64_t token = blockIdx.x;
  for (int64_t i = token * kThreads + threadIdx.x; blockIdx.y == 0 && i < p.plan.tiles();
       i += int64_t{gridDim.x} * kThreads) {
    p.out.counters[i] = 0;
  }
  const int64_t padded_cols = p.plan.chunks * kChunkCols;
  float v[kRun];
  float largest = 0;
  for (int64_t col = threadIdx.x * kRun; col < padded_cols; col += kThreads * kRun) {
    load_scaled(p, token, col, v);
#pragma unroll
    for (int i = 0; i < kRun; ++i) largest = fmaxf(largest, fabsf(v[i]));
  }
  const float scale = scale_for(max_block(largest, shared));
  if (threadIdx.x == 0 && blockIdx.y == 0) p.out.scales[token] = scale;
  // Stores are scattered: the blocks of a token share them.
  const int64_t runs = padded_cols / kRun;
  const int64_t begin = runs * blockIdx.y / gridDim.y, end = runs * (blockIdx.y + 1) / gridDim.y;
  for (int64_t run = begin + threadIdx.x; run < end; run += kThreads) {
    load_scaled(p, token, run * kRun, v);
    store_run(p, token, run * kRun, 1.0f / scale, v);
  }
}

size_t aligned(size_t bytes) { return (bytes + 1023) / 1024 * 1024; }

struct Sizes {
  size_t packed, scales, transposed, partial_sums, counters;
};

Sizes sizes_of(const GemmPlan& plan) {
  const int64_t tokens = plan.token_tiles * plan.tile_tokens();
  const int64_t cols = plan.chunks * kChunkCols;
  return {.packed = aligned(static_cast<size_t>(cols * plan.token_tiles * plan.columns) * 2),
          .scales = aligned(static_cast<size_t>(tokens) * 4),
          .transposed = aligned(static_cast<size_t>(cols * tokens) * 4),
          .partial_sums = aligned(static_cast<size_t>(plan.blocks * 2 * plan.columns * plan.tile_rows()) * 4),
          .counters = aligned(static_cast<size_t>(plan.tiles()) * 4)};
}

}  // namespace

size_t packed_x_bytes(const GemmPlan& plan) noexcept {
  const Sizes sizes = sizes_of(plan);
  return sizes.packed + sizes.scales + sizes.transposed + sizes.partial_sums + sizes.counters;
}

PackedX place_packed_x(const GemmPlan& plan, bool outliers, const Workspace& workspace) noexcept {
  const Sizes sizes = sizes_of(plan);
  PackedX x{.transposed_stride = plan.token_tiles * plan.tile_tokens()};
  auto* memory = static_cast<char*>(workspace.data);
  x.packed = memory;
  x.scales = reinterpret_cast<float*>(memory += sizes.packed);
  float* transposed = reinterpret_cast<float*>(memory += sizes.scales);
  if (outliers) x.transposed = transposed;
  x.partial_sums = reinterpret_cast<float*>(memory += sizes.transposed);
  x.counters = reinterpret_cast<uint32_t*>(memory += sizes.partial_sums);
  return x;
}

Status pack_x(const LinearArgs& args, const CodebookWeight& weight, const GemmPlan& plan, const PackedX& x,
              Stream stream) noexcept {
  const int64_t tokens = plan.token_tiles * plan.tile_tokens();
  const int64_t parts = tokens >= 128 ? 1 : 128 / tokens;
  const int64_t most = plan.chunks * kChunkCols / (kRun * 32);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(parts < most ? parts
                                                                                            : most > 0   ? most
                                                                                                         : 1)),
                          .block = dim3(kThreads)};
  return launch(pack_kernel, shape, stream,
                Parameters{.x = args.x,
                           .channel_scales = weight.channel_scales,
                           .tokens = args.tokens,
                           .cols = weight.cols,
                           .plan = plan,
                           .out = x});
}

}  // namespace hxq::cuda
