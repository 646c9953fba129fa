// Attention of many rows by warpgroup products, on Hopper (FlashAttention-3, Shah et al. 2024, arXiv 2407.08608). Two
// or three warpgroups have 64 queries each that share a key-value head, and go through the positions 128 at a time, 64
// with `exact`; one thread brings keys and values ahead, which a kernel before has placed as the products want them.
// While a warpgroup turns scores into weights, the products of the other warpgroups run.
//
// Sums are in units of a power of two that fits the values of the last step; where a tile's values fit a smaller one,
// its weights are made smaller by as much. With `exact` those of a step start from zero and are added in float: tensor
// cores cut sums off.

#include "kernels/cuda/attention_hopper_memory.cuh"
#include "kernels/cuda/attention_prefill_memory.cuh"

namespace hxq::cuda {
namespace {

template <class Shape>
class Worker {
  using Memory = HopperMemory<Shape>;
  using Tile = typename Shape::Tile;
  static constexpr int kDim = Shape::kDim, kParts = Shape::kParts, kCacheParts = Shape::kCacheParts;
  static constexpr int kStages = Shape::kStages, kRows = Shape::kRows, kGroup = Shape::kGroup;
  static constexpr int kTile = Shape::kTile, kTiles = Shape::kTiles, kKeys = Shape::kKeys;

 public:
  /// Reads nothing that kernels write.
  __device__ Worker(const HopperParameters& p, Memory& shared)
      : p_(p), args_(p.args), shared_(shared), list_{.p = p, .first_row = 0, .count = 0} {
    const int sequence = static_cast<int>(blockIdx.y), parts = p.parts.count;
    const RowRange segment = args_.batch.segments[sequence];
    // The last rows see most: they come first.
    first_ = static_cast<int>(gridDim.z - 1 - blockIdx.z) / parts * kRows;
    part_ = static_cast<int>(blockIdx.z) % parts;
    list_.first_row = segment.begin;
    list_.count = (segment.end - segment.begin) * p.group;
    if (!has_rows()) return;
    const RoundedSegment placed(args_, p.placed, sequence);
    if (!placed.exists) list_.count = 0;
    if (!has_rows()) return;
    first_tile_ = SeenTiles(args_, p.placed, sequence).first - placed.first_slot;
    const SeenPositions block(list_.position_of(first_), list_.position_of(first_ + kRows - 1), args_.window);
    const int first = block.begin / kTile * kTile, steps = ceil_div(block.end - first, kKeys);
    begin_ = first + steps * part_ / parts * kKeys;
    end_ = min(first + steps * (part_ + 1) / parts * kKeys, block.end);
  }

  __device__ bool has_rows() const { return first_ < list_.count; }
  __device__ bool has_positions() const { return begin_ < end_; }

  __device__ void start_barriers() {
    for (int i = 0; i < kStages; ++i) {
      hopper::init_barrier(&shared_.full_keys[i], 1);
      hopper::init_barrier(&shared_.full_values[i], 1);
      hopper::init_barrier(&shared_.empty_keys[i], kGroup / 32 * Shape::kGroups);
      hopper::init_barrier(&shared_.empty_values[i], kGroup / 32 * Shape::kGroups);
    }
    hopper::fence_barriers();
  }

  /// One thread. A tile that the cache does not have is stood in for by the one before: it must be numbers.
  __device__ void bring() {
    const auto* tiles = static_cast<const Tile*>(p_.placed.data) + blockIdx.x;
    const int last = (end_ - 1) / kTile;
    hopper::RingPlace<kStages> stage;
    for (int at = begin_; at < end_; at += kKeys) {
      const int i = stage.index;
      const Tile* tile[kTiles];
      for (int t = 0; t < kTiles; ++t)
        tile[t] = tiles + int64_t{min(at / kTile + t, last) - first_tile_} * args_.cache.heads;
      hopper::wait(&shared_.empty_keys[i], stage.parity ^ 1);  // passes in the first round
      hopper::arrive_and_expect_bytes(&shared_.full_keys[i], sizeof(shared_.keys[i]) + sizeof(shared_.scales[i]));
      for (int t = 0; t < kTiles; ++t) {
        hopper::copy_bulk(shared_.keys[i][t], tile[t]->keys, sizeof(tile[t]->keys), &shared_.full_keys[i]);
        hopper::copy_bulk(&shared_.scales[i][t], &tile[t]->key_scale, sizeof(float4), &shared_.full_keys[i]);
      }
      hopper::wait(&shared_.empty_values[i], stage.parity ^ 1);
      hopper::arrive_and_expect_bytes(&shared_.full_values[i], sizeof(shared_.values[i]));
      for (int t = 0; t < kTiles; ++t)
        hopper::copy_bulk(shared_.values[i][t], tile[t]->values, sizeof(tile[t]->values), &shared_.full_values[i]);
      stage.advance();
    }
  }

  /// Of a part without positions.
  __device__ void write_nothing() const {
    const int place = first_ + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kRows && place < list_.count) partial_of(place)[args_.cache.head_dim + 1] = 0;
  }

  __device__ void attend() {
    load_queries(list_, first_, shared_);
    hopper::fence_tiles();
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group()), "n"(kGroup) : "memory");
    start_rows();
    hopper::RingPlace<kStages> stage;
    int before = 0;
    uint32_t before_parity = 0;
    hopper::wait(&shared_.full_keys[0], 0);
    hopper::fence_products();
    multiply_keys(0);
    hopper::wait_for_products();
    weigh(begin_, 0);
    leave(&shared_.empty_keys[0]);
    pack();
    stage.advance();
#pragma unroll 1
    for (int at = begin_ + kKeys; at < end_; at += kKeys) {
      hopper::wait(&shared_.full_keys[stage.index], stage.parity);
      hopper::fence_products();
      multiply_keys(stage.index);
      hopper::wait(&shared_.full_values[before], before_parity);
      hopper::fence_products();
      multiply_values(before);
      hopper::wait_for_products_but_last();
      weigh(at, stage.index);
      leave(&shared_.empty_keys[stage.index]);
      // Never. What comes before a branch is not moved behind the wait, where nothing else would run beside it.
      if (args_.cache.heads < 0) break;
      hopper::wait_for_products();
      leave(&shared_.empty_values[before]);
      add_step();
      rescale();
      pack();
      before = stage.index, before_parity = stage.parity;
      stage.advance();
    }
    hopper::wait(&shared_.full_values[before], before_parity);
    hopper::fence_products();
    multiply_values(before);
    hopper::wait_for_products();
    add_step();
    write();
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static int warp() { return static_cast<int>(threadIdx.x / 32); }
  __device__ static int group() { return static_cast<int>(threadIdx.x / kGroup); }
  __device__ static int own_row(int h) { return warp() * 16 + 8 * h + ResultPlace(lane()).row; }
  __device__ static void leave(uint64_t* barrier) {
    __syncwarp();
    if (lane() == 0) hopper::arrive(barrier);
  }

  __device__ void start_rows() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row_scale_[h] = shared_.row_scale[own_row(h)];
      position_[h] = list_.position_of(first_ + own_row(h));
      top_[h] = -INFINITY, total_[h] = 0;
    }
    const int own = first_ + 64 * group();
    group_ = SeenPositions(list_.position_of(own), list_.position_of(own + 63), args_.window);
#pragma unroll
    for (float& sum : sums_) sum = 0;
#pragma unroll
    for (float& score : scores_) score = 0;
  }

  /// Calls with the parts of left and right operands whose products count, as constants; with the largest ones last.
  template <class Body>
  __device__ static void for_parts(const Body& body) {
    if constexpr (kParts == 2) body(std::integral_constant<int, 1>(), std::integral_constant<int, 0>());
    if constexpr (kCacheParts == 2) body(std::integral_constant<int, 0>(), std::integral_constant<int, 1>());
    body(std::integral_constant<int, 0>(), std::integral_constant<int, 0>());
  }

  __device__ void multiply_keys(int stage) {
    for_parts([&]<int kQuery, int kKey>(std::integral_constant<int, kQuery>, std::integral_constant<int, kKey>) {
      const uint64_t queries = hopper::operand_of(shared_.queries[kQuery][0][64 * group()]);
      const uint64_t keys = hopper::transposed_operand_of(shared_.keys[stage][0][kKey], sizeof(shared_.keys[stage][0]));
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        const uint64_t a = queries + k / 4 * (sizeof(shared_.queries[0][0]) >> 4) + k % 4 * hopper::kOperandStep;
        const uint64_t b = keys + k * hopper::kTransposedStep;
        if (k == 0 && kQuery + 1 == kParts) {
          hopper::multiply_transposed_async<false>(scores_, a, b);
        } else {
          hopper::multiply_transposed_async<true>(scores_, a, b);
        }
      }
    });
    hopper::commit_products();
  }

  __device__ void multiply_values(int stage) {
    for_parts([&]<int kWeight, int kValue>(std::integral_constant<int, kWeight>, std::integral_constant<int, kValue>) {
      constexpr uint32_t kPiece = sizeof(shared_.values[0][0][0][0]);
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
        const uint64_t b = hopper::transposed_operand_of(shared_.values[stage][k / 4][kValue], kPiece) +
                           k % 4 * hopper::kTransposedStep;
        if constexpr (!Shape::kIsExact) {
          hopper::multiply_transposed_async<true>(sums_, weights_[kWeight][k], b);
        } else if (k == 0 && kWeight == 1) {
          hopper::multiply_transposed_async<false>(step_, weights_[kWeight][k], b);
        } else {
          hopper::multiply_transposed_async<true>(step_, weights_[kWeight][k], b);
        }
      }
    });
    hopper::commit_products();
  }

  __device__ void add_step() {
    if constexpr (Shape::kIsExact) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) sums_[i] += step_[i];
    }
  }

  /// Scores become weights: powers of two of what they are more than a whole number that is not below any score so far,
  /// so that `keep_`, which earlier sums are multiplied with, is exact.
  __device__ void weigh(int at, int stage) {
    float2 scale[kTiles];  // of keys and of values
    float largest[kTiles][2], unit = 0;
    if (!group_.all_hold(at, kKeys)) mask(at);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      scale[t] = *reinterpret_cast<const float2*>(&shared_.scales[stage][t]);
      unit = fmaxf(unit, scale[t].y);
      largest[t][0] = largest[t][1] = -INFINITY;
#pragma unroll
      for (int i = 0; i < 32; ++i) largest[t][i / 2 % 2] = fmaxf(largest[t][i / 2 % 2], scores_[32 * t + i]);
    }
    // Earlier sums grow by no more than 2^60, and weights are made smaller by no more: they do not overflow, nor
    // vanish.
    largest_unit_ = fmaxf(largest_unit_, unit);
    const float next_unit = fmaxf(unit, largest_unit_ * 0x1p-60f), inverse = inverse_of_scale(next_unit);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = -INFINITY;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) most = fmaxf(most, largest[t][h] * scale[t].x);
      const float top = fmaxf(top_[h], ceilf(max_lanes(most, 4) * row_scale_[h]));
      // Nothing seen so far: keep the sums as the zeros they are.
      const bool sees_none = top == -INFINITY;
      const float keep = sees_none ? 1.0f : fast_exp2(top_[h] - top);
      top_[h] = top;
      keep_[h] = keep * (unit_ * inverse);
      total_[h] *= keep;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const float ratio = fmaxf(scale[t].y * inverse, 0x1p-60f), factor = row_scale_[h] * scale[t].x;
        const float shift = (sees_none ? 0.0f : kWeightExponent - top) + exponent_of(ratio);
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& own = scores_[32 * t + 4 * n + 2 * h + i];
            own = fast_exp2(fmaf(own, factor, shift));
            sum += own;
          }
        }
        total_[h] = fmaf(sum, inverse_of_scale(ratio), total_[h]);
      }
    }
    unit_ = next_unit;
  }

  __device__ static float exponent_of(float power) { return static_cast<float>((__float_as_int(power) >> 23) - 127); }

  __device__ void mask(int at) {
    const int first = at + ResultPlace(lane()).col;
    const auto window = static_cast<int>(args_.window);
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      const int key = first + i / 4 * 8 + i % 2, row = position_[i / 2 % 2];
      if (key > row || (window > 0 && key <= row - window)) scores_[i] = -INFINITY;
    }
  }

  __device__ void rescale() {
    if (!__any_sync(kAllLanes, keep_[0] != 1.0f || keep_[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sums_[i] *= keep_[i / 2 % 2];
  }

  __device__ void pack() {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t parts[kParts];
        split(scores_[4 * n + 2 * h], scores_[4 * n + 2 * h + 1], parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part) weights_[part][n / 2][left_register(n % 2, h)] = parts[part];
      }
    }
  }

  __device__ float* partial_of(int place) const {
    return p_.parts.at(args_, part_, list_.row_of(place), list_.head_of(place));
  }

  __device__ void write() const {
    if (p_.parts.count > 1) {
      write([&](int place) { return partial_of(place); });
    } else {
      with_type(args_.y.dtype, [&]<class T>(T) {
        write([&](int place) { return static_cast<T*>(args_.y.data) + list_.offset_of(place, args_.y.stride); });
      });
    }
  }

  /// row_of: where a query's outputs go.
  template <class RowOf>
  __device__ void write(const RowOf& row_of) const {
    using T = std::remove_pointer_t<decltype(row_of(0))>;
    const int dim = static_cast<int>(args_.cache.head_dim), col = ResultPlace(lane()).col;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = sum_lanes<4>(total_[h]);
      const int place = first_ + own_row(h);
      if (place >= list_.count) continue;
      const float factor = 1 / total;
      T* to = row_of(place) + col;
      if (p_.parts.count > 1 && col == 0) {
        partial_of(place)[dim] = top_[h];
        partial_of(place)[dim + 1] = total;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        if (8 * n + col >= dim) break;
        const Pair<T> two{static_cast<T>(sums_[4 * n + 2 * h] * factor * unit_),
                          static_cast<T>(sums_[4 * n + 2 * h + 1] * factor * unit_)};
        if (p_.moves_pairs) {
          *reinterpret_cast<Pair<T>*>(to + 8 * n) = two;
        } else {
          to[8 * n] = two.x, to[8 * n + 1] = two.y;
        }
      }
    }
  }

  const HopperParameters& p_;
  const AttentionArgs& args_;
  Memory& shared_;
  QueryList list_;
  int first_;                ///< the block's first query in the list
  int part_;                 ///< of the positions that its queries see
  int first_tile_ = 0;       ///< what the segment's tile in the first slot has for a number
  int begin_ = 0, end_ = 0;  ///< positions that the block goes through
  SeenPositions group_;
  int position_[2];
  float row_scale_[2], top_[2], total_[2];  ///< tops are what weights are relative to, totals the lane's share
  float keep_[2];
  float unit_ = 0, largest_unit_ = 0;  ///< of the sums
  float scores_[kKeys / 2], sums_[kDim / 2];
  float step_[Shape::kIsExact ? kDim / 2 : 1];  ///< sums of a step
  uint32_t weights_[kParts][kKeys / 16][4];
};

template <int kDim, int kParts, int kCacheParts>
__global__ void __launch_bounds__(HopperShape<kDim, kParts, kCacheParts>::kThreads, 1)
    attention_hopper_kernel(const __grid_constant__ HopperParameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = HopperShape<kDim, kParts, kCacheParts>;
  constexpr int kMultipliers = Shape::kGroup * Shape::kGroups;
  extern __shared__ __align__(1024) unsigned char attention_hopper_memory[];
  let_successors_begin();
  if (hopper::shared_address(attention_hopper_memory) % 1024 != 0) __trap();
  Worker<Shape> worker(p, *reinterpret_cast<HopperMemory<Shape>*>(attention_hopper_memory));
  if (threadIdx.x == 0) worker.start_barriers();
  __syncthreads();
  wait_for_predecessors();
  if (!worker.has_rows()) return;
  if (!worker.has_positions()) return worker.write_nothing();
  if (threadIdx.x >= kMultipliers) {
    hopper::shrink_registers<Shape::kBringerRegisters>();
    if (threadIdx.x == kMultipliers) worker.bring();
  } else {
    hopper::grow_registers<Shape::kMultiplierRegisters>();
    worker.attend();
  }
#else
  __trap();  // built for another GPU
#endif
}

constexpr int kJoinThreads = 128;

/// Joins the parts of a row's head: one block each.
__global__ void __launch_bounds__(kJoinThreads) join_hopper_kernel(const __grid_constant__ HopperParameters p) {
  let_successors_begin();
  const AttentionArgs& args = p.args;
  const int token = static_cast<int>(blockIdx.x / args.query_heads), sequence = static_cast<int>(blockIdx.y);
  const RowRange segment = args.batch.segments[sequence];
  const bool is_placed = RoundedSegment(args, p.placed, sequence).exists;
  wait_for_predecessors();
  if (!is_placed || token >= segment.end - segment.begin) return;
  p.parts.join<kJoinThreads>(args, p.parts.count, segment.begin + token, blockIdx.x % args.query_heads);
}

bool has_pairs(const void* data, int64_t stride, DType dtype) {
  return stride % 2 == 0 && is_aligned(data, static_cast<uintptr_t>(2 * element_bytes(dtype)));
}

template <int kDim, int kParts, int kCacheParts>
Status start(const AttentionArgs& args, const RoundedTiles& placed, const AttentionParts& parts, Stream stream) {
  using Shape = HopperShape<kDim, kParts, kCacheParts>;
  const HopperParameters p{.args = args,
                           .group = static_cast<int>(args.query_heads / args.cache.heads),
                           .moves_pairs = has_pairs(args.q.data, args.q.stride, args.q.dtype) &&
                                          has_pairs(args.y.data, args.y.stride, args.y.dtype),
                           .placed = placed,
                           .parts = parts};
  const auto blocks = static_cast<unsigned>(ceil_div(args.batch.max_rows * p.group, Shape::kRows) * parts.count);
  const auto count = static_cast<unsigned>(args.batch.count);
  const Status status = launch(attention_hopper_kernel<kDim, kParts, kCacheParts>,
                               {.grid = dim3(static_cast<unsigned>(args.cache.heads), count, blocks),
                                .block = dim3(Shape::kThreads),
                                .shared_bytes = sizeof(HopperMemory<Shape>)},
                               stream, p);
  if (status != Status::ok || parts.count == 1) return status;
  return launch(
      join_hopper_kernel,
      {.grid = dim3(static_cast<unsigned>(args.batch.max_rows * args.query_heads), count), .block = dim3(kJoinThreads)},
      stream, p);
}

}  // namespace

bool supports_attention_hopper(const AttentionArgs& args) noexcept {
  const int64_t dim = args.cache.padded_dim;
  return (dim == 64 || dim == 128) && current_device().compute_capability == 90;
}

size_t placed_slot_bytes(const AttentionArgs& args) noexcept {
  return with_placed_tile(args, [&]<int kDim, int kCacheParts>(WarpgroupTile<kDim, kCacheParts>*) {
    return sizeof(WarpgroupTile<kDim, kCacheParts>) * static_cast<size_t>(args.cache.heads);
  });
}

int hopper_parts(const AttentionArgs& args) noexcept {
  return with_placed_tile(args, [&]<int kDim, int kCacheParts>(WarpgroupTile<kDim, kCacheParts>*) {
    return warpgroup_parts(args, HopperShape<kDim, 1, kCacheParts>::kRows, current_device().multiprocessors);
  });
}

Status attention_hopper(const AttentionArgs& args, const RoundedTiles& placed, const AttentionParts& parts,
                        Stream stream) noexcept {
  return with_placed_tile(args, [&]<int kDim, int kCacheParts>(WarpgroupTile<kDim, kCacheParts>*) {
    if constexpr (kCacheParts == 1) {
      if (args.precision == Precision::fast) return start<kDim, 1, 1>(args, placed, parts, stream);
    }
    return start<kDim, 2, kCacheParts>(args, placed, parts, stream);
  });
}

}  // namespace hxq::cuda
