// Attention over a tiled cache in float. A block has up to kRows rows of queries of one key-value head: the heads of
// its group for adjacent tokens. It goes over the tiles that any of them sees, or over a part of them.

#include <algorithm>

#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/attention_prefill.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 16;
constexpr int kKeys = KvCacheView::kTile;

struct Parameters {
  AttentionArgs args;
  int group;
  int block_tokens;      ///< tokens of a block: block_tokens * group <= kRows, or 1
  int row_blocks;        ///< blocks that share a token's group, where it has more than kRows heads
  AttentionParts parts;  ///< of the positions, at most: positions are not known when a graph is captured
  bool both;             ///< keys and values are loaded together: where blocks are few
};

/// Queries, a tile's keys and values of one head, and scores.
struct Shared {
  float* keys;    // [padded_dim, kKeys], as in the cache
  float* values;  // [kKeys, padded_dim], as in the cache; without room for both they take the keys' place
  float* q;       // [kRows, padded_dim]
  float* scores;  // [kRows, kKeys]
  float* scale;   // [kRows] what the sums so far are multiplied with
  int* row;       // [kRows] of the activations
  int* head;      // [kRows] of the queries
  int* position;  // [kRows]

  __device__ Shared(float* memory, int dim, bool both)
      : keys(memory),
        values(both ? keys + kKeys * dim : keys),
        q(values + kKeys * dim),
        scores(q + kRows * dim),
        scale(scores + kRows * kKeys),
        row(reinterpret_cast<int*>(scale + kRows)),
        head(row + kRows),
        position(head + kRows) {}
  static size_t bytes(int64_t dim, bool both) {
    return sizeof(float) * static_cast<size_t>((both ? 2 : 1) * kKeys * dim + kRows * dim + kRows * kKeys + 4 * kRows);
  }
};

/// The tiles that a block's rows see, and in how many parts they are read: few tiles are not worth many.
struct Tiles {
  int first, count, parts;

  __device__ Tiles(const Parameters& p, int first_position, int last_position) {
    const int begin = p.args.window > 0 ? max(first_position - static_cast<int>(p.args.window) + 1, 0) : 0;
    first = begin / kKeys;
    count = last_position / kKeys + 1 - first;
    parts = min(p.parts.count, count);
  }
};

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

class Worker {
 public:
  /// Reads nothing that kernels write.
  __device__ Worker(const Parameters& p, float* memory)
      : p_(p),
        args_(p.args),
        dim_(static_cast<int>(p.args.cache.head_dim)),
        padded_(static_cast<int>(p.args.cache.padded_dim)),
        shared_(memory, padded_, p.both) {
    const int sequence = static_cast<int>(blockIdx.z) / p.parts.count;
    part_ = static_cast<int>(blockIdx.z) % p.parts.count;
    head_ = static_cast<int>(blockIdx.y);
    const RowRange segment = args_.batch.segments[sequence];
    first_row_ = segment.begin + static_cast<int>(blockIdx.x) / p.row_blocks * p.block_tokens;
    first_in_group_ = static_cast<int>(blockIdx.x) % p.row_blocks * kRows;
    const int tokens = min(p.block_tokens, segment.end - first_row_);
    rows_ = tokens <= 0 ? 0 : p.row_blocks > 1 ? min(kRows, p.group - first_in_group_) : tokens * p.group;
    if (rows_ == 0) return;
    tiles_ = static_cast<const void* const*>(args_.cache.tiles[sequence]);
    last_position_ = args_.batch.positions[row_of(rows_ - 1)];
    const Tiles tiles(p_, args_.batch.positions[first_row_], last_position_);
    parts_ = tiles.parts;
    begin_ = tiles.first + tiles.count * part_ / parts_;
    end_ = tiles.first + tiles.count * (part_ + 1) / parts_;
    if (threadIdx.x < kRows) {  // others stand in for rows that are not there
      const int row = min(static_cast<int>(threadIdx.x), rows_ - 1);
      shared_.row[threadIdx.x] = row_of(row);
      shared_.head[threadIdx.x] = head_ * p.group + (p.row_blocks > 1 ? first_in_group_ + row : row % p.group);
      shared_.position[threadIdx.x] = args_.batch.positions[row_of(row)];
    }
    __syncthreads();
  }

  __device__ void run() {
    if (rows_ == 0 || part_ >= parts_) return;
    load_queries();
    for (int tile = begin_; tile < end_; ++tile) {
      load(shared_.keys, tile, 0, kKeys);
      if (p_.both) load_values(tile);
      __syncthreads();
      if (rows_ <= kWarps) {
        compute_scores<1>(tile);
      } else if (rows_ <= 2 * kWarps) {
        compute_scores<2>(tile);
      } else {
        compute_scores<kWarpRows>(tile);
      }
      __syncthreads();
      if (!p_.both) {
        load_values(tile);
        __syncthreads();
      }
      with_own_rows([&](auto count) { add_values<count.value>(); });
      __syncthreads();
    }
    with_own_rows([&](auto count) { write<count.value>(); });
  }

 private:
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWarpRows = kRows / kWarps;
  // A thread keeps sums for elements element() and element() + kThreads of every row, or of every second one where
  // heads are so small that half of the threads have all elements.
  static constexpr int kElements = static_cast<int>(kMaxHeadDim) / kThreads;

  __device__ int row_of(int row) const { return first_row_ + (p_.row_blocks > 1 ? 0 : row / p_.group); }
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static int warp() { return static_cast<int>(threadIdx.x / 32); }
  __device__ bool halves() const { return dim_ <= kThreads / 2; }
  __device__ int element() const { return static_cast<int>(threadIdx.x) % (halves() ? kThreads / 2 : kThreads); }
  /// Calls with how many rows a thread has, rounded up to a power of two, as a constant.
  template <class Body>
  __device__ void with_own_rows(const Body& body) const {
    const int count = halves() ? (rows_ + 1) / 2 : rows_;
    if (count <= 1) {
      body(Constant<1>{});
    } else if (count <= 2) {
      body(Constant<2>{});
    } else if (count <= 4) {
      body(Constant<4>{});
    } else if (count <= 8) {
      body(Constant<8>{});
    } else {
      body(Constant<kRows>{});
    }
  }
  /// Row number r of the thread.
  __device__ int own_row(int r) const { return halves() ? 2 * r + static_cast<int>(threadIdx.x) / (kThreads / 2) : r; }

  /// Scaled so that powers of two of scores are weights.
  __device__ void load_queries() {
    const float scale = args_.scale * kLog2E;
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const int row = warp() + r * kWarps;
      if (row >= rows_) break;
      const int64_t t = shared_.row[row], first = int64_t{shared_.head[row]} * dim_;
      for (int i = lane(); i < padded_; i += 32) {
        shared_.q[row * padded_ + i] = i < dim_ ? scale * load_at(args_.q, t, first + i) : 0.0f;
      }
    }
  }

  /// The head's keys (0) or values (1) of a tile; runs of those that belong to rows of values past `known` as zeros.
  __device__ void load(float* to, int tile, int part, int known) const {
    const void* from = tiles_[tile];
    const int64_t first = (part * args_.cache.heads + head_) * kKeys * padded_;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x) * 16; i < kKeys * padded_; i += kThreads * 16) {
      float v[16] = {};
      if (i < known * padded_) load_run(from, args_.cache.dtype, first + i, 16, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        reinterpret_cast<float4*>(to + i)[j] = make_float4(v[4 * j], v[4 * j + 1], v[4 * j + 2], v[4 * j + 3]);
      }
    }
  }

  /// What the cache does not hold yet may be anything, and is multiplied with zero.
  __device__ void load_values(int tile) const {
    load(shared_.values, tile, 1, min(last_position_ + 1 - tile * kKeys, kKeys));
  }

  /// A warp computes the scores of every kWarps-th row, kCount at most, and brings their running maximum and weight up
  /// to date; a lane has two keys.
  template <int kCount>
  __device__ void compute_scores(int tile) {
    float score[kCount][2] = {};
    const float* k = shared_.keys + lane();
    const float* q = shared_.q + warp() * padded_;
#pragma unroll 2
    for (int i = 0; i < padded_; i += 4) {
      float key[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        key[j][0] = k[(i + j) * kKeys];
        key[j][1] = k[(i + j) * kKeys + 32];
      }
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        const float4 query = *reinterpret_cast<const float4*>(q + r * kWarps * padded_ + i);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          score[r][h] = fmaf(query.x, key[0][h], score[r][h]);
          score[r][h] = fmaf(query.y, key[1][h], score[r][h]);
          score[r][h] = fmaf(query.z, key[2][h], score[r][h]);
          score[r][h] = fmaf(query.w, key[3][h], score[r][h]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kCount; ++r) weigh(r, tile, score[r]);
  }

  /// Rows that are not there get what the last one gets, which nobody looks at.
  __device__ void weigh(int r, int tile, float (&score)[2]) {
    const int row = warp() + r * kWarps;
    const int own = shared_.position[row], window = static_cast<int>(args_.window);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int at = tile * kKeys + lane() + 32 * h;
      if (at > own || (window > 0 && at <= own - window)) score[h] = -INFINITY;
    }
    const float largest = fmaxf(maximum_[r], max_lanes(fmaxf(score[0], score[1])));
    // Nothing seen so far: keep the sums as the zeros they are.
    const float keep = largest == -INFINITY ? 1.0f : fast_exp2(maximum_[r] - largest);
    float sum = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float weight = largest == -INFINITY ? 0.0f : fast_exp2(score[h] - largest);
      shared_.scores[row * kKeys + lane() + 32 * h] = weight;
      sum += weight;
    }
    weight_[r] = weight_[r] * keep + sum_lanes(sum);
    maximum_[r] = largest;
    if (lane() == 0) shared_.scale[row] = keep;
  }

  template <int kCount>
  __device__ void add_values() {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int i = element() + e * kThreads;
      if (i >= dim_) break;
#pragma unroll
      for (int r = 0; r < kCount; ++r) sums_[r][e] *= shared_.scale[own_row(r)];
#pragma unroll 2
      for (int k = 0; k < kKeys; k += 4) {
        float value[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) value[j] = shared_.values[(k + j) * padded_ + i];
#pragma unroll
        for (int r = 0; r < kCount; ++r) {
          const float4 weight = *reinterpret_cast<const float4*>(shared_.scores + own_row(r) * kKeys + k);
          sums_[r][e] = fmaf(weight.x, value[0], sums_[r][e]);
          sums_[r][e] = fmaf(weight.y, value[1], sums_[r][e]);
          sums_[r][e] = fmaf(weight.z, value[2], sums_[r][e]);
          sums_[r][e] = fmaf(weight.w, value[3], sums_[r][e]);
        }
      }
    }
  }

  template <int kCount>
  __device__ void write() {
    // Every thread needs the weights that the warps have.
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      if (lane() == 0) {
        shared_.scores[2 * (warp() + r * kWarps)] = maximum_[r];
        shared_.scores[2 * (warp() + r * kWarps) + 1] = weight_[r];
      }
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const int row = own_row(r);
      if (row >= rows_) break;
      const int64_t t = shared_.row[row], head = shared_.head[row];
      float* partial = p_.parts.at(args_, part_, t, head);
      const float factor = 1 / shared_.scores[2 * row + 1];
      if (parts_ > 1 && element() < 2) partial[dim_ + element()] = shared_.scores[2 * row + element()];
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int i = element() + e * kThreads;
        if (i >= dim_) break;
        if (parts_ > 1) {
          partial[i] = sums_[r][e] * factor;
        } else {
          store_at(args_.y, t, head * dim_ + i, sums_[r][e] * factor);
        }
      }
    }
  }

  const Parameters& p_;
  const AttentionArgs& args_;
  const int dim_, padded_;
  Shared shared_;
  const void* const* tiles_ = nullptr;
  int part_, parts_ = 0, head_, first_row_, first_in_group_, rows_, last_position_ = 0, begin_ = 0, end_ = 0;
  float maximum_[kWarpRows] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float weight_[kWarpRows] = {};
  float sums_[kRows][kElements] = {};
};

__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(16) float attention_memory[];
  let_successors_begin();
  Worker worker(p, attention_memory);
  wait_for_predecessors();
  worker.run();
}

/// Joins the parts of a row's head: one block each.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  const AttentionArgs& args = p.args;
  const RowRange segment = args.batch.segments[blockIdx.y];
  const int token = static_cast<int>(blockIdx.x / args.query_heads);
  const int first = segment.begin + token / p.block_tokens * p.block_tokens;
  const int last = min(first + p.block_tokens, segment.end) - 1;
  const bool is_there = token < segment.end - segment.begin;
  const int parts = is_there ? Tiles(p, args.batch.positions[first], args.batch.positions[last]).parts : 0;
  wait_for_predecessors();
  if (parts > 1) p.parts.join<kThreads>(args, parts, segment.begin + token, blockIdx.x % args.query_heads);
}

Parameters parameters_of(const AttentionArgs& args) {
  Parameters p{.args = args, .group = static_cast<int>(args.query_heads / args.cache.heads)};
  p.block_tokens = p.group >= kRows ? 1 : kRows / p.group;
  if (p.block_tokens > args.batch.max_rows) p.block_tokens = args.batch.max_rows;
  p.row_blocks = p.group > kRows ? ceil_div(p.group, kRows) : 1;
  const int64_t blocks =
      ceil_div<int64_t>(args.batch.max_rows, p.block_tokens) * p.row_blocks * args.cache.heads * args.batch.count;
  const int64_t wanted = ceil_div<int64_t>(2 * current_device().multiprocessors, blocks);
  p.parts = {.data = static_cast<float*>(args.workspace.data),
             .count = static_cast<int>(std::min<int64_t>(wanted, kMostAttentionParts))};
  p.both = p.parts.count > 1;
  return p;
}

}  // namespace

size_t attention_workspace(const AttentionArgs& args) noexcept {
  if (args.batch.count == 0 || args.batch.max_rows == 0) return 0;
  if (supports_attention_prefill(args)) return attention_prefill_workspace(args);
  return AttentionParts::bytes(args, parameters_of(args).parts.count);
}

Status attention(const AttentionArgs& args, Stream stream) noexcept {
  if (args.cache.heads < 1 || args.query_heads % args.cache.heads != 0 || args.cache.padded_dim > kMaxHeadDim ||
      args.cache.padded_dim % 16 != 0) {
    return Status::invalid_value;
  }
  if (args.batch.count == 0 || args.batch.max_rows == 0) return Status::ok;
  if (args.workspace.bytes < attention_workspace(args)) return Status::invalid_value;
  if (supports_attention_prefill(args)) return attention_prefill(args, stream);
  const Parameters p = parameters_of(args);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(ceil_div(args.batch.max_rows, p.block_tokens) * p.row_blocks),
                   static_cast<unsigned>(args.cache.heads), static_cast<unsigned>(args.batch.count * p.parts.count)),
      .block = dim3(kThreads),
      .shared_bytes = Shared::bytes(args.cache.padded_dim, p.both)};
  if (const Status status = launch(attention_kernel, shape, stream, p); status != Status::ok || p.parts.count == 1)
    return status;
  const dim3 grid(static_cast<unsigned>(args.batch.max_rows * args.query_heads),
                  static_cast<unsigned>(args.batch.count));
  return launch(join_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, p);
}

}  // namespace hxq::cuda
