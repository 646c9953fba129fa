// Attention of one token of each sequence, with its rotary positions and its keys and values on their way into the
// cache. A cluster of blocks has a key-value head of a sequence: each goes over a part of the tiles for all query heads
// of the group, and sends what it found to the block that joins that part of the output.

#include <cooperative_groups.h>

#include "kernels/cuda/attention_step.h"
#include "kernels/cuda/kv_cache.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kKeys = KvCacheView::kTile;
constexpr int kQuarters = kThreads / kKeys;  ///< of a key's elements, each a thread's
constexpr int kMostParts = 16;
constexpr int kMostGroup = 8;
constexpr int kTogether = 16;  ///< loads of a thread on their way

struct Parameters {
  AttentionStepArgs args;
  int parts;  ///< of the positions: blocks of a cluster
};

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

/// kGroup: query heads of a key-value head, at most.
template <int kGroup>
struct Shared {
  alignas(16) float q[kGroup][kMaxHeadDim];            ///< rotated and scaled, zeros behind the head
  alignas(16) float scores[kQuarters][kGroup][kKeys];  ///< of each quarter of the elements
  alignas(16) float weights[kGroup][kKeys];            ///< of the tile's values
  float sums[kQuarters][kGroup][kMaxHeadDim];          ///< of values, by groups of keys
  float2 rotation[kMaxHeadDim / 2];
  float keep[kGroup];                     ///< what earlier sums are multiplied with
  float maximum[kGroup], weight[kGroup];  ///< so far
  float others_maximum[kMostParts][kGroup], others_weight[kMostParts][kGroup];
  float others_sums[kGroup * kMaxHeadDim + kMostParts];  ///< [parts, joined()]: of the output that the block joins
};

template <int kGroup, class Element>
class Worker {
 public:
  __device__ Worker(const Parameters& p, Shared<kGroup>& shared)
      : p_(p),
        args_(p.args),
        shared_(shared),
        dim_(static_cast<int>(args_.cache.head_dim)),
        padded_(static_cast<int>(args_.cache.padded_dim)),
        group_(static_cast<int>(args_.query_heads / args_.cache.heads)),
        part_(static_cast<int>(blockIdx.x)),
        head_(static_cast<int>(blockIdx.y)),
        sequence_(static_cast<int>(blockIdx.z)),
        key_groups_(padded_ <= 64    ? 4
                    : padded_ <= 128 ? 2
                                     : 1) {}

  /// Reads nothing that kernels write. Whether there is a row; the same for all blocks of a cluster.
  __device__ bool prepare() {
    const RowRange segment = args_.batch.segments[sequence_];
    if (segment.begin == segment.end) return false;
    row_ = segment.begin;
    position_ = args_.batch.positions[row_];
    const int seen = args_.window > 0 ? max(position_ - static_cast<int>(args_.window) + 1, 0) : 0;
    const int first = seen / kKeys, count = position_ / kKeys + 1 - first;
    begin_ = first + count * part_ / p_.parts;
    end_ = first + count * (part_ + 1) / p_.parts;
    tiles_ = static_cast<const void* const*>(args_.cache.tiles[sequence_]);
    if (begin_ < end_) tile_ = tiles_[begin_];
    for (int i = thread(); i < dim_ / 2; i += kThreads) {
      shared_.rotation[i] =
          args_.inverse_frequency
              ? rotation_of(position_, static_cast<const float*>(args_.inverse_frequency[sequence_])[i])
              : make_float2(1, 0);
    }
    if (thread() < kGroup) shared_.maximum[thread()] = -INFINITY, shared_.weight[thread()] = 0;
    __syncthreads();
    return true;
  }

  __device__ void run() {
    bring_token();
    __syncthreads();
    for (int tile = begin_; tile < end_; ++tile) {
      const auto* keys = static_cast<const Element*>(tile_) + int64_t{head_} * kKeys * padded_;
      const auto* values = keys + args_.cache.heads * kKeys * padded_;
      if (tile + 1 < end_) tile_ = tiles_[tile + 1];
      multiply_keys(keys);
      float first[kTogether];  // asked for before the scores are there
      load_values(values, tile, 0, first);
      __syncthreads();
      weigh(tile);
      __syncthreads();
      add_values(values, tile, first);
    }
    send();
    cooperative_groups::this_cluster().sync();
    join();
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }

  /// The token's queries, and its key and value into the cache: by the block that reads them, the last.
  __device__ void bring_token() {
    const int half = dim_ / 2;
    for (int i = thread(); i < kGroup * half; i += kThreads) {
      const int g = i / half, pair = i % half;
      const int64_t at = (int64_t{head_} * group_ + g) * dim_ + pair;
      const float2 q =
          g < group_ ? make_float2(load_at(args_.q, row_, at), load_at(args_.q, row_, at + half)) : make_float2(0, 0);
      const float2 rotated = rotate(q, shared_.rotation[pair]);
      shared_.q[g][pair] = args_.scale * rotated.x;
      shared_.q[g][pair + half] = args_.scale * rotated.y;
    }
    for (int i = thread(); i < kGroup * (padded_ - dim_); i += kThreads) {
      shared_.q[i / (padded_ - dim_)][dim_ + i % (padded_ - dim_)] = 0;
    }
    if (part_ + 1 < p_.parts) return;
    const CacheSlot slot(args_.cache, sequence_, position_, head_);
    for (int i = thread(); i < half; i += kThreads) {
      const int64_t at = int64_t{head_} * dim_ + i;
      const float2 k = make_float2(load_at(args_.k, row_, at), load_at(args_.k, row_, at + half));
      const float2 v = make_float2(load_at(args_.v, row_, at), load_at(args_.v, row_, at + half));
      slot.store(args_.cache, i, half, rotate(k, shared_.rotation[i]), v);
    }
  }

  /// A thread multiplies a quarter of a key's elements with those of every query.
  __device__ void multiply_keys(const Element* keys) {
    const int key = thread() % kKeys, quarter = thread() / kKeys;
    const int first = quarter * padded_ / kQuarters, last = (quarter + 1) * padded_ / kQuarters;
    float score[kGroup] = {};
    for (int d = first; d < last; d += kTogether) {
      float element[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        element[i] = d + i < last ? static_cast<float>(keys[(d + i) * kKeys + key]) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kTogether; i += 4) {
        if (d + i >= last) break;
#pragma unroll
        for (int g = 0; g < kGroup; ++g) {
          const float4 q = *reinterpret_cast<const float4*>(&shared_.q[g][d + i]);
          score[g] = fmaf(q.x, element[i], score[g]);
          score[g] = fmaf(q.y, element[i + 1], score[g]);
          score[g] = fmaf(q.z, element[i + 2], score[g]);
          score[g] = fmaf(q.w, element[i + 3], score[g]);
        }
      }
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) shared_.scores[quarter][g][key] = score[g];
  }

  /// A warp turns scores of a query head into weights.
  __device__ void weigh(int tile) {
    const int lane = thread() % 32, g = thread() / 32;
    if (g >= kGroup) return;
    float score[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int key = lane + 32 * h, at = tile * kKeys + key;
      float sum = 0;
#pragma unroll
      for (int quarter = 0; quarter < kQuarters; ++quarter) sum += shared_.scores[quarter][g][key];
      const bool seen = at <= position_ && (args_.window <= 0 || at > position_ - args_.window);
      score[h] = seen ? sum : -INFINITY;
    }
    const float before = shared_.maximum[g];
    const float largest = fmaxf(before, max_lanes(fmaxf(score[0], score[1])));
    const float keep = largest == -INFINITY ? 1.0f : __expf(before - largest);
    float sum = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float weight = largest == -INFINITY ? 0.0f : __expf(score[h] - largest);
      shared_.weights[g][lane + 32 * h] = weight;
      sum += weight;
    }
    sum = sum_lanes(sum);
    if (lane == 0) {
      shared_.keep[g] = keep;
      shared_.maximum[g] = largest;
      shared_.weight[g] = shared_.weight[g] * keep + sum;
    }
  }

  /// The thread's element of a value, and the keys that it has: kKeys / key_groups_ from first_key() on.
  __device__ int element() const { return thread() % (kThreads / key_groups_); }
  __device__ int first_key() const { return thread() / (kThreads / key_groups_) * (kKeys / key_groups_); }

  /// Values of kTogether keys from the thread's key number `begin` on. What the cache does not hold yet may be
  /// anything, and its weight is zero: it is read as zero.
  __device__ void load_values(const Element* values, int tile, int begin, float (&value)[kTogether]) const {
    const bool is_there = element() < padded_;
    const int known = position_ + 1 - tile * kKeys;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int key = first_key() + begin + i;
      value[i] = is_there && key < known ? static_cast<float>(values[key * padded_ + element()]) : 0.0f;
    }
  }

  __device__ void add_values(const Element* values, int tile, const float (&first)[kTogether]) {
#pragma unroll
    for (int g = 0; g < kGroup; ++g) sum_[g] *= shared_.keep[g];
    add(first, 0);
    for (int begin = kTogether; begin < kKeys / key_groups_; begin += kTogether) {
      float value[kTogether];
      load_values(values, tile, begin, value);
      add(value, begin);
    }
  }
  __device__ void add(const float (&value)[kTogether], int begin) {
#pragma unroll
    for (int i = 0; i < kTogether; i += 4) {
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const float4 weight = *reinterpret_cast<const float4*>(&shared_.weights[g][first_key() + begin + i]);
        sum_[g] = fmaf(weight.x, value[i], sum_[g]);
        sum_[g] = fmaf(weight.y, value[i + 1], sum_[g]);
        sum_[g] = fmaf(weight.z, value[i + 2], sum_[g]);
        sum_[g] = fmaf(weight.w, value[i + 3], sum_[g]);
      }
    }
  }

  /// Output elements that a block joins; number i is element i % dim_ of the group's query head i / dim_.
  __device__ int joined() const { return ceil_div(group_ * dim_, p_.parts); }

  /// What this block's tiles give goes to the blocks that join it.
  __device__ void send() {
    const auto cluster = cooperative_groups::this_cluster();
    const int key_group = thread() / (kThreads / key_groups_);
    if (element() < dim_) {
#pragma unroll
      for (int g = 0; g < kGroup; ++g) shared_.sums[key_group][g][element()] = sum_[g];
    }
    __syncthreads();
    for (int i = thread(); i < group_ * dim_; i += kThreads) {
      float sum = 0;
      for (int k = 0; k < key_groups_; ++k) sum += shared_.sums[k][i / dim_][i % dim_];
      *cluster.map_shared_rank(&shared_.others_sums[part_ * joined() + i % joined()], i / joined()) = sum;
    }
    for (int i = thread(); i < group_ * p_.parts; i += kThreads) {
      const int g = i % group_, to = i / group_;
      *cluster.map_shared_rank(&shared_.others_maximum[part_][g], to) = shared_.maximum[g];
      *cluster.map_shared_rank(&shared_.others_weight[part_][g], to) = shared_.weight[g];
    }
  }

  __device__ void join() const {
    for (int i = thread(); i < joined(); i += kThreads) {
      const int number = part_ * joined() + i;
      if (number >= group_ * dim_) return;
      const int g = number / dim_;
      float largest = -INFINITY, sum = 0, weight = 0;
      for (int part = 0; part < p_.parts; ++part) largest = fmaxf(largest, shared_.others_maximum[part][g]);
      for (int part = 0; part < p_.parts; ++part) {
        const float factor = __expf(shared_.others_maximum[part][g] - largest);
        weight = fmaf(shared_.others_weight[part][g], factor, weight);
        sum = fmaf(shared_.others_sums[part * joined() + i], factor, sum);
      }
      store_at(args_.y, row_, (int64_t{head_} * group_) * dim_ + number, sum / weight);
    }
  }

  const Parameters& p_;
  const AttentionStepArgs& args_;
  Shared<kGroup>& shared_;
  const int dim_, padded_, group_, part_, head_, sequence_, key_groups_;
  const void* const* tiles_ = nullptr;
  const void* tile_ = nullptr;  ///< the next
  int64_t row_ = 0;
  int position_ = 0, begin_ = 0, end_ = 0;
  float sum_[kGroup] = {};
};

template <int kGroup, class Element>
__global__ void __launch_bounds__(kThreads) attention_step_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(16) unsigned char attention_step_memory[];
  let_successors_begin();
  Worker<kGroup, Element> worker(p, *reinterpret_cast<Shared<kGroup>*>(attention_step_memory));
  const bool has_row = worker.prepare();
  cooperative_groups::this_cluster().sync();  // all blocks run: they may be written to
  wait_for_predecessors();
  if (has_row) worker.run();
}

#else

template <int kGroup>
struct Shared {};
template <int kGroup, class Element>
__global__ void attention_step_kernel(const __grid_constant__ Parameters) {}

#endif

template <int kGroup, class Element>
Status launch_step(const Parameters& p, Stream stream) {
  return launch(attention_step_kernel<kGroup, Element>,
                {.grid = dim3(static_cast<unsigned>(p.parts), static_cast<unsigned>(p.args.cache.heads),
                              static_cast<unsigned>(p.args.batch.count)),
                 .block = dim3(kThreads),
                 .shared_bytes = sizeof(Shared<kGroup>),
                 .cluster = p.parts},
                stream, p);
}

template <class Element>
Status launch_group(const Parameters& p, Stream stream) {
  const int64_t group = p.args.query_heads / p.args.cache.heads;
  if (group == 1) return launch_step<1, Element>(p, stream);
  if (group <= 4) return launch_step<4, Element>(p, stream);
  return launch_step<kMostGroup, Element>(p, stream);
}

}  // namespace

bool supports_attention_step(const AttentionStepArgs& args) noexcept {
  const KvCacheView& cache = args.cache;
  const int capability = current_device().compute_capability;
  return cache.heads >= 1 && args.query_heads % cache.heads == 0 && args.query_heads / cache.heads <= kMostGroup &&
         cache.head_dim % 2 == 0 && cache.padded_dim <= kMaxHeadDim && cache.padded_dim % 16 == 0 &&
         (cache.dtype == DType::f32 || cache.dtype == DType::f16) && args.batch.max_rows == 1 && capability >= 90 &&
         capability < 120;
}

Status attention_step(const AttentionStepArgs& args, Stream stream) noexcept {
  if (!supports_attention_step(args)) return Status::invalid_value;
  if (args.batch.count == 0) return Status::ok;
  Parameters p{.args = args, .parts = 1};
  const int64_t heads = args.cache.heads * args.batch.count;
  while (p.parts < kMostParts && 2 * p.parts * heads <= 2 * current_device().multiprocessors) p.parts *= 2;
  return args.cache.dtype == DType::f32 ? launch_group<float>(p, stream) : launch_group<__half>(p, stream);
}

}  // namespace hxq::cuda
