// Attention over a paged cache. A block has up to kRows rows of queries of one key-value head: the heads of its group
// for adjacent tokens. It goes over the pages that any of them sees, or over a part of them.

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 16;
constexpr int kKeys = KvCacheView::kPage;
constexpr int kMaxParts = 32;

struct Parameters {
  AttentionArgs args;
  int group;
  int block_tokens;  ///< tokens of a block: block_tokens * group <= kRows, or 1
  int row_blocks;    ///< blocks that share a token's group, where it has more than kRows heads
  int parts;         ///< of the positions
  float* partial;    // [parts, total_rows, query_heads, head_dim + 2]: sums, then maximum and weight
};

/// Queries, one page's keys or values, and scores.
struct Shared {
  float* q;       // [kRows, head_dim]
  float* page;    // [kKeys, head_dim + 1]
  float* scores;  // [kRows, kKeys]
  float* scale;   // [kRows] what the sums so far are multiplied with

  __device__ Shared(float* memory, int64_t dim)
      : q(memory), page(q + kRows * dim), scores(page + kKeys * (dim + 1)), scale(scores + kRows * kKeys) {}
  static size_t bytes(int64_t dim) {
    return sizeof(float) * static_cast<size_t>(kRows * dim + kKeys * (dim + 1) + kRows * kKeys + kRows);
  }
};

class Worker {
 public:
  __device__ Worker(const Parameters& p, float* memory)
      : p_(p), args_(p.args), dim_(static_cast<int>(p.args.cache.head_dim)), shared_(memory, dim_) {
    sequence_ = static_cast<int>(blockIdx.z) / p.parts;
    part_ = static_cast<int>(blockIdx.z) % p.parts;
    head_ = static_cast<int>(blockIdx.y);
    segment_ = args_.batch.segments[sequence_];
    first_token_ = static_cast<int>(blockIdx.x) / p.row_blocks * p.block_tokens;
    first_in_group_ = static_cast<int>(blockIdx.x) % p.row_blocks * kRows;
    const int tokens = min(p.block_tokens, segment_.rows - first_token_);
    rows_ = p.row_blocks > 1 ? min(kRows, p.group - first_in_group_) : max(tokens, 0) * p.group;
    if (first_token_ >= segment_.rows) rows_ = 0;
  }

  __device__ void run() {
    if (rows_ == 0) return;
    load_queries();
    const int64_t last = position(rows_ - 1);
    const int64_t first = args_.window > 0 ? max(position(0) - args_.window + 1, int64_t{0}) : 0;
    const int64_t first_page = first / kKeys, pages = last / kKeys + 1 - first_page;
    const int64_t begin = first_page + pages * part_ / p_.parts, end = first_page + pages * (part_ + 1) / p_.parts;
    for (int64_t page = begin; page < end; ++page) {
      load_page(args_.cache.keys, page);
      compute_scores(page);
      __syncthreads();
      load_page(args_.cache.values, page);
      add_values();
      __syncthreads();
    }
    write();
  }

 private:
  // A thread keeps sums for elements threadIdx.x and threadIdx.x + kThreads of every row.
  static constexpr int kElements = static_cast<int>(kMaxHeadDim) / kThreads;

  __device__ int token_of(int row) const { return first_token_ + (p_.row_blocks > 1 ? 0 : row / p_.group); }
  __device__ int64_t query_head(int row) const {
    return int64_t{head_} * p_.group + (p_.row_blocks > 1 ? first_in_group_ + row : row % p_.group);
  }
  __device__ int64_t position(int row) const { return args_.positions[sequence_] + int64_t{token_of(row)}; }

  __device__ void load_queries() {
    for (int i = static_cast<int>(threadIdx.x); i < rows_ * dim_; i += kThreads) {
      const int row = i / dim_;
      shared_.q[i] =
          args_.scale * load_at(args_.q, segment_.first_row + token_of(row), query_head(row) * dim_ + i % dim_);
    }
    __syncthreads();
  }

  __device__ void load_page(const void* from, int64_t page) {
    const KvCacheView& cache = args_.cache;
    const int64_t place = (cache.pages[sequence_ * cache.max_pages + page] * cache.heads + head_) * kKeys * dim_;
    const int known = static_cast<int>(min(position(rows_ - 1) + 1 - page * kKeys, int64_t{kKeys})) * dim_;
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * dim_; i += kThreads) {
      // What the cache does not hold yet may be anything.
      shared_.page[i / dim_ * (dim_ + 1) + i % dim_] = i < known ? load_element(from, cache.dtype, place + i) : 0.0f;
    }
    __syncthreads();
  }

  /// A warp computes the scores of a row and brings its running maximum and weight up to date; a lane has two keys.
  __device__ void compute_scores(int64_t page) {
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    constexpr int kWarpRows = kRows / (kThreads / 32);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const int row = warp + r * (kThreads / 32);
      if (row >= rows_) break;
      const float* q = shared_.q + row * dim_;
      const float* k = shared_.page + lane * (dim_ + 1);
      float score[2] = {};
      for (int i = 0; i < dim_; ++i) {
        score[0] = fmaf(q[i], k[i], score[0]);
        score[1] = fmaf(q[i], k[i + 32 * (dim_ + 1)], score[1]);
      }
      const int64_t own = position(row);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int64_t at = page * kKeys + lane + 32 * j;
        if (at > own || (args_.window > 0 && at <= own - args_.window)) score[j] = -INFINITY;
      }
      const float largest = fmaxf(maximum_[r], max_lanes(fmaxf(score[0], score[1])));
      // Nothing seen so far: keep the sums as the zeros they are.
      const float keep = largest == -INFINITY ? 1.0f : __expf(maximum_[r] - largest);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float weight = largest == -INFINITY ? 0.0f : __expf(score[j] - largest);
        shared_.scores[row * kKeys + lane + 32 * j] = weight;
        sum += weight;
      }
      weight_[r] = weight_[r] * keep + sum_lanes(sum);
      maximum_[r] = largest;
      if (lane == 0) shared_.scale[row] = keep;
    }
  }

  __device__ void add_values() {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= rows_) break;
      const float keep = shared_.scale[row];
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int i = static_cast<int>(threadIdx.x) + e * kThreads;
        if (i >= dim_) break;
        float sum = sums_[row][e] * keep;
        for (int k = 0; k < kKeys; ++k)
          sum = fmaf(shared_.scores[row * kKeys + k], shared_.page[k * (dim_ + 1) + i], sum);
        sums_[row][e] = sum;
      }
    }
  }

  __device__ void write() {
    // Every thread needs the weights that the warps have.
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
    for (int r = 0; r < kRows / (kThreads / 32); ++r) {
      if (lane == 0) {
        shared_.scores[2 * (warp + r * (kThreads / 32))] = maximum_[r];
        shared_.scores[2 * (warp + r * (kThreads / 32)) + 1] = weight_[r];
      }
    }
    __syncthreads();
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= rows_) break;
      const int64_t t = segment_.first_row + token_of(row), head = query_head(row);
      float* partial =
          p_.partial + ((part_ * int64_t{args_.batch.total_rows} + t) * args_.query_heads + head) * (dim_ + 2);
      const float weight = shared_.scores[2 * row + 1];
      if (p_.parts > 1 && threadIdx.x < 2) partial[dim_ + threadIdx.x] = shared_.scores[2 * row + threadIdx.x];
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const int i = static_cast<int>(threadIdx.x) + e * kThreads;
        if (i >= dim_) break;
        if (p_.parts > 1) {
          partial[i] = sums_[row][e];
        } else {
          store_at(args_.y, t, head * dim_ + i, sums_[row][e] / weight);
        }
      }
    }
  }

  const Parameters& p_;
  const AttentionArgs& args_;
  const int dim_;
  Shared shared_;
  int sequence_, part_, head_, first_token_, first_in_group_, rows_;
  Segment segment_;
  float maximum_[kRows / (kThreads / 32)] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float weight_[kRows / (kThreads / 32)] = {};
  float sums_[kRows][kElements] = {};
};

__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(16) float attention_memory[];
  let_successors_begin();
  wait_for_predecessors();
  Worker(p, attention_memory).run();
}

/// Joins the parts of a row's head: one block each.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const AttentionArgs& args = p.args;
  const Segment segment = args.batch.segments[blockIdx.y];
  if (static_cast<int>(blockIdx.x / args.query_heads) >= segment.rows) return;
  const int64_t t = segment.first_row + blockIdx.x / args.query_heads, head = blockIdx.x % args.query_heads;
  const int64_t dim = args.cache.head_dim;
  const int64_t stride = int64_t{args.batch.total_rows} * args.query_heads * (dim + 2);
  const float* partial = p.partial + (t * args.query_heads + head) * (dim + 2);
  float largest = -INFINITY, weight = 0;
  for (int part = 0; part < p.parts; ++part) largest = fmaxf(largest, partial[part * stride + dim]);
  for (int part = 0; part < p.parts; ++part) {
    weight += partial[part * stride + dim + 1] * __expf(partial[part * stride + dim] - largest);
  }
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
    float sum = 0;
    for (int part = 0; part < p.parts; ++part)
      sum = fmaf(partial[part * stride + i], __expf(partial[part * stride + dim] - largest), sum);
    store_at(args.y, t, head * dim + i, sum / weight);
  }
}

Parameters parameters_of(const AttentionArgs& args) {
  Parameters p{.args = args, .group = static_cast<int>(args.query_heads / args.cache.heads)};
  p.block_tokens = p.group >= kRows ? 1 : kRows / p.group;
  if (p.block_tokens > args.batch.max_rows) p.block_tokens = args.batch.max_rows;
  p.row_blocks = p.group > kRows ? ceil_div(p.group, kRows) : 1;
  const int64_t blocks =
      ceil_div<int64_t>(args.batch.max_rows, p.block_tokens) * p.row_blocks * args.cache.heads * args.batch.count;
  const int64_t seen = args.window > 0 && args.window < args.max_position + 1 ? args.window : args.max_position + 1;
  const int64_t wanted = ceil_div<int64_t>(2 * current_device().multiprocessors, blocks);
  const int64_t useful = ceil_div<int64_t>(seen, 2 * kKeys);
  p.parts = static_cast<int>(wanted < useful ? wanted : useful);
  if (p.parts > kMaxParts) p.parts = kMaxParts;
  if (p.parts < 1) p.parts = 1;
  p.partial = static_cast<float*>(args.workspace.data);
  return p;
}

}  // namespace

size_t attention_workspace(const AttentionArgs& args) noexcept {
  if (args.batch.count == 0 || args.batch.max_rows == 0) return 0;
  const Parameters p = parameters_of(args);
  return p.parts == 1
             ? 0
             : static_cast<size_t>(p.parts * args.batch.total_rows * args.query_heads * (args.cache.head_dim + 2)) *
                   sizeof(float);
}

Status attention(const AttentionArgs& args, Stream stream) noexcept {
  if (args.cache.heads < 1 || args.query_heads % args.cache.heads != 0 || args.cache.head_dim > kMaxHeadDim)
    return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0) return Status::ok;
  if (args.workspace.bytes < attention_workspace(args)) return Status::invalid_value;
  const Parameters p = parameters_of(args);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(ceil_div(args.batch.max_rows, p.block_tokens) * p.row_blocks),
                   static_cast<unsigned>(args.cache.heads), static_cast<unsigned>(args.batch.count * p.parts)),
      .block = dim3(kThreads),
      .shared_bytes = Shared::bytes(args.cache.head_dim)};
  if (const Status status = launch(attention_kernel, shape, stream, p); status != Status::ok || p.parts == 1)
    return status;
  const dim3 grid(static_cast<unsigned>(args.batch.max_rows * args.query_heads),
                  static_cast<unsigned>(args.batch.count));
  return launch(join_kernel, {.grid = grid, .block = dim3(kThreads)}, stream, p);
}

}  // namespace hxq::cuda
