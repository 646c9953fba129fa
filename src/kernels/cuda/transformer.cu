// Small operations of transformer blocks: the cache, gated activations.

#include <algorithm>

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

// ---- of many rows: several share what they need, and keys reach the cache in rows of positions ----

constexpr int kTileThreads = 256;
constexpr int kTileRows = 32;
constexpr int kMaxTileHeads = 8;           ///< of queries, or of keys and values, that a block has at most
constexpr int kKeyStride = kTileRows + 1;  ///< for the banks

struct ExtendTileParameters {
  ExtendCacheArgs args;
  int heads;         ///< that a block has
  int query_blocks;  ///< along z; those after them have keys and values
};

/// kTileRows rows of a segment: four pairs of elements together.
__global__ void __launch_bounds__(kTileThreads) extend_tile_kernel(const __grid_constant__ ExtendTileParameters of) {
  extern __shared__ __align__(16) float2 extend_memory[];
  const ExtendCacheArgs& p = of.args;
  let_successors_begin();
  const int sequence = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const RowRange segment = p.batch.segments[sequence];
  const int first = segment.begin + static_cast<int>(blockIdx.x) * kTileRows,
            rows = min(kTileRows, segment.end - first);
  const auto half = static_cast<int>(p.cache.head_dim / 2);
  const int fours = half / 4;                                          // of pairs
  float2* rotation = extend_memory;                                    // [kTileRows, half]
  auto* keys = reinterpret_cast<float*>(rotation + kTileRows * half);  // [2 half, kKeyStride]
  const float* frequency = p.inverse_frequency ? static_cast<const float*>(p.inverse_frequency[sequence]) : nullptr;
  for (int i = thread; i < rows * half; i += kTileThreads) {
    rotation[i] = frequency ? rotation_of(p.batch.positions[first + i / half], frequency[i % half]) : make_float2(1, 0);
  }
  __syncthreads();
  wait_for_predecessors();
  if (rows <= 0) return;
  const auto rotated = [&](const auto& x, int row, int64_t col, int four, float4& a, float4& b) {
    a = load_four(x, first + row, col + 4 * four), b = load_four(x, first + row, col + 4 * four + half);
    const float2* by = rotation + row * half + 4 * four;
    const float2 pairs[4] = {rotate(make_float2(a.x, b.x), by[0]), rotate(make_float2(a.y, b.y), by[1]),
                             rotate(make_float2(a.z, b.z), by[2]), rotate(make_float2(a.w, b.w), by[3])};
    a = make_float4(pairs[0].x, pairs[1].x, pairs[2].x, pairs[3].x);
    b = make_float4(pairs[0].y, pairs[1].y, pairs[2].y, pairs[3].y);
  };
  if (static_cast<int>(blockIdx.z) < of.query_blocks) {
    const int64_t head = int64_t{blockIdx.z} * of.heads;
    const int per_row = static_cast<int>(min(int64_t{of.heads}, p.query_heads - head)) * fours;
    for (int i = thread; i < rows * per_row; i += kTileThreads) {
      const int row = i / per_row, four = i % fours;
      const int64_t col = (head + i % per_row / fours) * 2 * half;
      float4 a, b;
      rotated(p.q, row, col, four, a, b);
      store_four(p.q, first + row, col + 4 * four, a);
      store_four(p.q, first + row, col + 4 * four + half, b);
    }
    return;
  }
  const int64_t begin = (int64_t{blockIdx.z} - of.query_blocks) * of.heads;
  for (int64_t head = begin; head < min(begin + of.heads, p.cache.heads); ++head) {
    const int64_t col = head * 2 * half;
    for (int i = thread; i < rows * fours; i += kTileThreads) {
      const int row = i / fours, four = i % fours;
      float4 a, b;
      rotated(p.k, row, col, four, a, b);
      const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        keys[(4 * four + j) * kKeyStride + row] = left[j];
        keys[(4 * four + j + half) * kKeyStride + row] = right[j];
      }
    }
    for (int i = thread; i < rows * 2 * fours; i += kTileThreads) {
      const int row = i / (2 * fours), at = i % (2 * fours) * 4;
      const CacheSlot slot(p.cache, sequence, p.batch.positions[first + row], head);
      store_four(Output{.data = slot.tile, .dtype = p.cache.dtype}, 0, slot.value + at,
                 load_four(p.v, first + row, col + at));
    }
    __syncthreads();
    if (const int row = thread % kTileRows; row < rows) {
      const CacheSlot slot(p.cache, sequence, p.batch.positions[first + row], head);
      for (int i = thread / kTileRows; i < 2 * half; i += kTileThreads / kTileRows) {
        store_element(slot.tile, p.cache.dtype, slot.key + int64_t{i} * KvCacheView::kTile, keys[i * kKeyStride + row]);
      }
    }
    __syncthreads();
  }
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
  if (args.batch.max_rows >= kTileRows && args.cache.head_dim % 8 == 0 && has_fours(args.q) && has_fours(args.k) &&
      has_fours(args.v)) {
    // With rows, at most: segments are shorter than the longest.
    const int64_t tiles = std::min<int64_t>(ceil_div<int64_t>(args.batch.max_rows, kTileRows) * args.batch.count,
                                            args.batch.total_rows / kTileRows + args.batch.count);
    ExtendTileParameters p{.args = args, .heads = kMaxTileHeads, .query_blocks = 0};
    const auto blocks_of = [&](int64_t heads) { return static_cast<int>(ceil_div<int64_t>(heads, p.heads)); };
    const int64_t rotated_heads = args.inverse_frequency ? args.query_heads : 0;
    const auto all_blocks = [&] { return blocks_of(rotated_heads) + blocks_of(args.cache.heads); };
    // A block goes through its heads of keys one after the other: of few rows as many blocks as there is room for.
    while (p.heads > 1 && tiles * all_blocks() < 2 * current_device().multiprocessors) p.heads /= 2;
    p.query_blocks = blocks_of(rotated_heads);
    const dim3 grid(static_cast<unsigned>(ceil_div(args.batch.max_rows, kTileRows)),
                    static_cast<unsigned>(args.batch.count), static_cast<unsigned>(all_blocks()));
    const int64_t half = args.cache.head_dim / 2;
    const size_t bytes = static_cast<size_t>(kTileRows * half) * sizeof(float2) +
                         static_cast<size_t>(2 * half * kKeyStride) * sizeof(float);
    return launch(extend_tile_kernel, {.grid = grid, .block = dim3(kTileThreads), .shared_bytes = bytes}, stream, p);
  }
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
