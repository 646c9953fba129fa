#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kItems = 4;  ///< elements of a thread
constexpr int kMaxThreads = 1024;

/// The elements of a row that are normed, with what comes before.
struct Row {
  const RmsNormArgs& p;
  int64_t token;

  /// Once: what is added to the residual stays there.
  __device__ float load(int64_t col) const {
    float x = load_at(p.x, token, col);
    if (p.residual.data) {
      store_at(p.residual, token, col, x + load_at(p.residual, token, col));
      x = load_at(p.residual, token, col);  // as it was rounded
    }
    return gated(x, col);
  }
  __device__ float load_again(int64_t col) const {
    return gated(p.residual.data ? load_at(p.residual, token, col) : load_at(p.x, token, col), col);
  }
  __device__ float4 load_four_of(int64_t col) const {
    float4 x = load_four(p.x, token, col);
    if (p.residual.data) {
      const float4 before = load_four(p.residual, token, col);
      store_four(p.residual, token, col, make_float4(x.x + before.x, x.y + before.y, x.z + before.z, x.w + before.w));
      x = load_four(p.residual, token, col);  // as it was rounded
    }
    if (!p.z.data) return x;
    const float4 z = load_four(p.z, token, col);
    return make_float4(x.x * silu(z.x), x.y * silu(z.y), x.z * silu(z.z), x.w * silu(z.w));
  }

 private:
  __device__ float gated(float x, int64_t col) const { return p.z.data ? x * silu(load_at(p.z, token, col)) : x; }
};

/// One block a group of a row. kInRegisters: a thread's elements are its kItems, adjacent ones where kFours; otherwise
/// rows are so long that they are read again.
template <bool kInRegisters, bool kFours>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(const __grid_constant__ RmsNormArgs p) {
  __shared__ float shared[32];
  let_successors_begin();
  const int64_t size = p.dim / p.groups, first = blockIdx.x % p.groups * size;
  const Row row{.p = p, .token = static_cast<int64_t>(blockIdx.x / p.groups)};
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto scale_of = [&](float sum) {
    return 1.0f / sqrtf(sum_block(sum, shared) / static_cast<float>(size) + p.eps);
  };
  if constexpr (kFours) {
    const int64_t col = first + 4 * thread;
    const bool is_there = 4 * thread < size;
    float4 weight = make_float4(0, 0, 0, 0), v = weight;
    if (is_there) weight = __ldg(reinterpret_cast<const float4*>(p.weight + col));
    wait_for_predecessors();
    if (is_there) v = row.load_four_of(col);
    const float scale = scale_of(fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, v.w * v.w))));
    if (!is_there) return;
    store_four(
        p.y, row.token, col,
        make_float4(v.x * scale * weight.x, v.y * scale * weight.y, v.z * scale * weight.z, v.w * scale * weight.w));
  } else if constexpr (kInRegisters) {
    float weight[kItems], v[kItems], sum = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t col = thread + i * threads;
      weight[i] = col < size ? __ldg(p.weight + first + col) : 0.0f;
    }
    wait_for_predecessors();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t col = thread + i * threads;
      v[i] = col < size ? row.load(first + col) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) sum = fmaf(v[i], v[i], sum);
    const float scale = scale_of(sum);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t col = thread + i * threads;
      if (col < size) store_at(p.y, row.token, first + col, v[i] * scale * weight[i]);
    }
  } else {
    wait_for_predecessors();
    float sum = 0;
    for (int64_t col = thread; col < size; col += threads) {
      const float x = row.load(first + col);
      sum = fmaf(x, x, sum);
    }
    const float scale = scale_of(sum);
    for (int64_t col = thread; col < size; col += threads)
      store_at(p.y, row.token, first + col, row.load_again(first + col) * scale * p.weight[first + col]);
  }
}

}  // namespace

Status rms_norm(const RmsNormArgs& args, Stream stream) noexcept {
  if (args.groups < 1 || args.dim % args.groups != 0) return Status::invalid_value;
  if (args.tokens == 0 || args.dim == 0) return Status::ok;
  const int64_t size = args.dim / args.groups;
  const int64_t wanted = ceil_div<int64_t>(ceil_div<int64_t>(size, kItems), 32) * 32;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.tokens * args.groups)),
                          .block = dim3(static_cast<unsigned>(wanted < kMaxThreads ? wanted : kMaxThreads))};
  if (wanted > kMaxThreads) return launch(rms_norm_kernel<false, false>, shape, stream, args);
  const bool fours = size % 4 == 0 && has_fours(args.x) && has_fours(args.y) && is_aligned(args.weight, 16) &&
                     (args.z.data == nullptr || has_fours(args.z)) &&
                     (args.residual.data == nullptr || has_fours(args.residual));
  return fours ? launch(rms_norm_kernel<true, true>, shape, stream, args)
               : launch(rms_norm_kernel<true, false>, shape, stream, args);
}

}  // namespace hxq::cuda
