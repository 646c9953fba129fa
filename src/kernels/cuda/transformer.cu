// Small operations of transformer blocks: the cache, gated activations.

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;

__device__ inline float2 rotated(float low, float high, double position, float frequency) {
  double sine, cosine;
  sincos(position * static_cast<double>(frequency), &sine, &cosine);
  const auto s = static_cast<float>(sine), c = static_cast<float>(cosine);
  return make_float2(low * c - high * s, high * c + low * s);
}

/// Where element 0 of a head's position is in the cache.
__device__ inline int64_t cache_place(const KvCacheView& cache, int sequence, int64_t position, int64_t head) {
  const int64_t page = cache.pages[sequence * cache.max_pages + position / KvCacheView::kPage];
  return ((page * cache.heads + head) * KvCacheView::kPage + position % KvCacheView::kPage) * cache.head_dim;
}

/// One block a row: pairs of elements of the queries, then of the keys and values.
__global__ void __launch_bounds__(kThreads) extend_cache_kernel(const __grid_constant__ ExtendCacheArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const auto sequence = static_cast<int>(blockIdx.y);
  const Segment segment = p.batch.segments[sequence];
  if (static_cast<int>(blockIdx.x) >= segment.rows) return;
  const int64_t row = segment.first_row + blockIdx.x;
  const int64_t position = p.positions[sequence] + static_cast<int64_t>(blockIdx.x);
  const int64_t dim = p.cache.head_dim, half = dim / 2, heads = p.cache.heads;
  const int64_t queries = p.inverse_frequency ? p.query_heads * half : 0;
  for (int64_t i = threadIdx.x; i < queries + heads * half; i += kThreads) {
    const bool is_query = i < queries;
    const int64_t pair = is_query ? i : i - queries;
    const int64_t head = pair / half, at = head * dim + pair % half;
    float2 v = is_query ? make_float2(load_at(p.q, row, at), load_at(p.q, row, at + half))
                        : make_float2(load_at(p.k, row, at), load_at(p.k, row, at + half));
    if (p.inverse_frequency) v = rotated(v.x, v.y, static_cast<double>(position), p.inverse_frequency[pair % half]);
    if (is_query) {
      store_at(p.q, row, at, v.x);
      store_at(p.q, row, at + half, v.y);
    } else {
      const int64_t place = cache_place(p.cache, sequence, position, head) + pair % half;
      store_element(p.cache.keys, p.cache.dtype, place, v.x);
      store_element(p.cache.keys, p.cache.dtype, place + half, v.y);
      store_element(p.cache.values, p.cache.dtype, place, load_at(p.v, row, at));
      store_element(p.cache.values, p.cache.dtype, place + half, load_at(p.v, row, at + half));
    }
  }
}

__device__ inline float activated(float x, Activation activation) {
  return activation == Activation::silu ? silu(x) : 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

__global__ void __launch_bounds__(kThreads) gated_activation_kernel(const __grid_constant__ GatedActivationArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t col = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (col >= p.dim) return;
  for (int64_t t = blockIdx.y; t < p.tokens; t += gridDim.y) {
    store_at(p.y, t, col, activated(load_at(p.gate, t, col), p.activation) * load_at(p.up, t, col));
  }
}

}  // namespace

Status extend_cache(const ExtendCacheArgs& args, Stream stream) noexcept {
  if (args.cache.head_dim % 2 != 0 || args.cache.head_dim > kMaxHeadDim) return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0) return Status::ok;
  const dim3 grid(static_cast<unsigned>(args.batch.max_rows), static_cast<unsigned>(args.batch.count));
  return launch(extend_cache_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

Status gated_activation(const GatedActivationArgs& args, Stream stream) noexcept {
  if (args.tokens == 0 || args.dim == 0) return Status::ok;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.dim, kThreads)),
                  static_cast<unsigned>(args.tokens < 4096 ? args.tokens : 4096));
  return launch(gated_activation_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

}  // namespace hxq::cuda
