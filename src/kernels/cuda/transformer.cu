// Small operations of transformer blocks: the cache, gated activations.

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;

constexpr int kBlockHeads = 8;  ///< heads, of queries and then of keys, that a block has

/// Where a head's keys and values of one position lie, in elements from the start of the tile.
struct Slot {
  void* tile;
  int64_t key, value;

  __device__ Slot(const KvCacheView& cache, int sequence, int64_t position, int64_t head)
      : tile(static_cast<void* const*>(cache.tiles[sequence])[position / KvCacheView::kTile]) {
    const int64_t slot = position % KvCacheView::kTile;
    key = head * cache.padded_dim * KvCacheView::kTile + slot;
    value = (cache.heads + head) * cache.padded_dim * KvCacheView::kTile + slot * cache.padded_dim;
  }
};

/// Some heads of one row: pairs of elements of the queries, then of the keys and values.
__global__ void __launch_bounds__(kThreads) extend_cache_kernel(const __grid_constant__ ExtendCacheArgs p) {
  __shared__ float cosine[kMaxHeadDim / 2], sine[kMaxHeadDim / 2];
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
    double s = 0, c = 1;
    if (rotates) {
      const float frequency = static_cast<const float*>(p.inverse_frequency[sequence])[i];
      sincos(static_cast<double>(position) * static_cast<double>(frequency), &s, &c);
    }
    cosine[i] = static_cast<float>(c);
    sine[i] = static_cast<float>(s);
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
    const float low = is_query ? load_at(p.q, row, at) : load_at(p.k, row, at);
    const float high = is_query ? load_at(p.q, row, at + half) : load_at(p.k, row, at + half);
    const float to_low = low * cosine[pair] - high * sine[pair], to_high = high * cosine[pair] + low * sine[pair];
    if (is_query) {
      store_at(p.q, row, at, to_low);
      store_at(p.q, row, at + half, to_high);
    } else {
      const Slot slot(p.cache, sequence, position, head);
      store_element(slot.tile, p.cache.dtype, slot.key + int64_t{pair} * KvCacheView::kTile, to_low);
      store_element(slot.tile, p.cache.dtype, slot.key + int64_t{pair + half} * KvCacheView::kTile, to_high);
      store_element(slot.tile, p.cache.dtype, slot.value + pair, load_at(p.v, row, at));
      store_element(slot.tile, p.cache.dtype, slot.value + pair + half, load_at(p.v, row, at + half));
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
  const dim3 grid(static_cast<unsigned>(args.batch.max_rows), static_cast<unsigned>(args.batch.count),
                  static_cast<unsigned>(ceil_div<int64_t>(args.query_heads + args.cache.heads, kBlockHeads)));
  return launch(extend_cache_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

Status gated_activation(const GatedActivationArgs& args, Stream stream) noexcept {
  if (args.tokens == 0 || args.dim == 0) return Status::ok;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(args.dim, kThreads)),
                  static_cast<unsigned>(args.tokens < 4096 ? args.tokens : 4096));
  return launch(gated_activation_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, args);
}

}  // namespace hxq::cuda
