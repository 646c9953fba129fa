// Small operations of transformer blocks: the cache, gated activations.

#include "kernels/cuda/activated.cuh"
#include "kernels/cuda/kv_cache.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;

constexpr int kBlockHeads = 8;  ///< heads, of queries and then of keys, that a block has

/// Some heads of one row: pairs of elements of the queries, then of the keys and values.
__global__ void __launch_bounds__(kThreads) extend_cache_kernel(const __grid_constant__ ExtendCacheArgs p) {
  __shared__ float2 rotation[kMaxHeadDim / 2];
  let_successors_begin();
  wait_for_predecessors();
  const auto sequence = static_cast<int>(blockIdx.y);
  const RowRange segment = p.batch.segments[sequence];
  if (static_cast<int>(blockIdx.x) >= segment.end - segment.begin) return;
  const int64_t row = segment.begin + blockIdx.x;
  const int64_t position = p.batch.positions[row];
  const auto half = static_cast<int>(p.cache.head_dim / 2);
  const bool rotates = p.inverse_frequency != nullptr;
  for (int i = static_cast<int>(threadIdx.x); i < half; i += kThreads) {
    rotation[i] = rotates ? rotation_of(position, static_cast<const float*>(p.inverse_frequency[sequence])[i])
                          : make_float2(1, 0);
  }
  __syncthreads();
  const int64_t heads = p.query_heads + p.cache.heads;
  const int64_t first = int64_t{blockIdx.z} * kBlockHeads, last = min(first + kBlockHeads, heads);
  for (int64_t i = first * half + threadIdx.x; i < last * half; i += kThreads) {
    const auto pair = static_cast<int>(i % half);
    const bool is_query = i / half < p.query_heads;
    if (is_query && !rotates) continue;
    const int64_t head = is_query ? i / half : i / half - p.query_heads;
    const int64_t at = head * 2 * half + pair;
    if (is_query) {
      const float2 q = rotate(make_float2(load_at(p.q, row, at), load_at(p.q, row, at + half)), rotation[pair]);
      store_at(p.q, row, at, q.x);
      store_at(p.q, row, at + half, q.y);
    } else {
      const float2 k = rotate(make_float2(load_at(p.k, row, at), load_at(p.k, row, at + half)), rotation[pair]);
      CacheSlot(p.cache, sequence, position, head)
          .store(p.cache, pair, half, k, make_float2(load_at(p.v, row, at), load_at(p.v, row, at + half)));
    }
  }
}

/// Four adjacent elements, from where four of the type are aligned.
__device__ float4 load_four(const Input& x, int64_t row, int64_t col) {
  const int64_t at = row * x.stride + col;
  if (x.dtype == DType::f32) return *reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + at);
  const uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(x.data) + at);
  const auto element = [&](int i) { return load_element(&raw, x.dtype, i); };
  return make_float4(element(0), element(1), element(2), element(3));
}

__device__ void store_four(const Output& y, int64_t row, int64_t col, float4 v) {
  const int64_t at = row * y.stride + col;
  if (y.dtype == DType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(y.data) + at) = v;
    return;
  }
  uint2 raw;
  const float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) store_element(&raw, y.dtype, i, four[i]);
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(y.data) + at) = raw;
}

/// kFour: elements of a thread are four adjacent ones.
template <bool kFour>
__global__ void __launch_bounds__(kThreads) gated_activation_kernel(const __grid_constant__ GatedActivationArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t col = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * (kFour ? 4 : 1);
  if (col >= p.dim) return;
  for (int64_t t = blockIdx.y; t < p.tokens; t += gridDim.y) {
    if constexpr (kFour) {
      const float4 gate = load_four(p.gate, t, col), up = load_four(p.up, t, col);
      store_four(p.y, t, col,
                 make_float4(activated(gate.x, p.activation) * up.x, activated(gate.y, p.activation) * up.y,
                             activated(gate.z, p.activation) * up.z, activated(gate.w, p.activation) * up.w));
    } else {
      store_at(p.y, t, col, activated(load_at(p.gate, t, col), p.activation) * load_at(p.up, t, col));
    }
  }
}

}  // namespace

Status extend_cache(const ExtendCacheArgs& args, Stream stream) noexcept {
  if (args.cache.head_dim % 2 != 0 || args.cache.head_dim > kMaxHeadDim) return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0) return Status::ok;
  const dim3 grid(static_cast<unsigned>(args.batch.max_rows), static_cast<unsigned>(args.batch.count),
                  static_cast<unsigned>(ceil_div<int64_t>(args.query_heads + args.cache.heads, kBlockHeads)));
  return launch(extend_cache_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

Status gated_activation(const GatedActivationArgs& args, Stream stream) noexcept {
  if (args.tokens == 0 || args.dim == 0) return Status::ok;
  const bool four = args.dim % 4 == 0 && has_fours(args.gate) && has_fours(args.up) && has_fours(args.y);
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.dim, four ? 4 * kThreads : kThreads)),
                  static_cast<unsigned>(args.tokens < 4096 ? args.tokens : 4096));
  const LaunchShape shape{.grid = grid, .block = dim3(kThreads)};
  return four ? launch(gated_activation_kernel<true>, shape, stream, args)
              : launch(gated_activation_kernel<false>, shape, stream, args);
}

}  // namespace hxq::cuda
