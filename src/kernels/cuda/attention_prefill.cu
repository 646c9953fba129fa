// Attention of many rows over a tiled cache by tensor cores. A block has up to 128 queries that share a key-value head
// and goes through the positions that any of them sees. Of each step, keys [kDim, kKeys] and values [kKeys, kDim] lie
// in shared memory as binary16, as they lie in the cache; both are right operands as they are. Scores become weights in
// the registers of their warp, which then are left operands.
//
// A cache of floats is converted in strips of 8 columns: divided by a power of two, then rounded (`fast`), or rounded
// and what that lacks rounded (`exact`). Where many blocks need it, a kernel before has done so for all of them
// (attention_rounding.cu); otherwise floats are copied to slots that lanes have for themselves, and a block converts
// them. Queries have a power of two for each row. Of two numbers in two parts three products are made: the low parts'
// is too small to count.
//
// Sums of a step start from zero and are added to those before in float: tensor cores cut sums off, which would add up.

#include "kernels/cuda/attention_prefill_memory.cuh"
#include "kernels/cuda/attention_rounding.cuh"

namespace hxq::cuda {
namespace {

struct Parameters {
  AttentionArgs args;
  int group;
  RoundedTiles rounded;
};

template <int kDim, bool kExact, class Element>
class Worker {
  using Shape = PrefillShape<kDim>;
  using Memory = PrefillMemory<kDim, kExact, Element>;
  static constexpr bool kConverts = Memory::kConverts, kScales = Memory::kScales;
  static constexpr bool kIsRounded = std::is_same_v<Element, Rounded>;
  static constexpr int kQueryParts = Memory::kQueryParts, kCacheParts = Memory::kCacheParts;
  static constexpr int kWarps = Shape::kWarps, kRowTiles = Shape::kRowTiles;
  static constexpr int kKeys = Shape::kKeys, kTile = static_cast<int>(KvCacheView::kTile);

 public:
  /// Reads nothing that kernels write.
  __device__ Worker(const Parameters& p, Memory& shared) : p_(p), args_(p.args), shared_(shared) {
    const int sequence = static_cast<int>(blockIdx.y);
    head_ = static_cast<int>(blockIdx.x);
    const RowRange segment = args_.batch.segments[sequence];
    // The last rows see most: they come first.
    first_ = static_cast<int>(gridDim.z - 1 - blockIdx.z) * Shape::kRows;
    first_row_ = segment.begin;
    count_ = (segment.end - segment.begin) * p.group;
    if (!has_rows()) return;
    const RoundedSegment rounded(args_, p.rounded, sequence);
    if (rounded.exists != kIsRounded) {
      count_ = 0;
      return;
    }
    if constexpr (kIsRounded) first_tile_ = SeenTiles(args_, p.rounded, sequence).first - rounded.first_slot;
    tiles_ = static_cast<const void* const*>(args_.cache.tiles[sequence]);
    block_ = seen_by(first_, Shape::kRows);
    const int own = first_ + warp() * Shape::kWarpRows;
    if (own < count_) warp_ = seen_by(own, Shape::kWarpRows);
    shared_.position[thread() % Shape::kRows] = position_of(first_ + thread() % Shape::kRows);
  }

  __device__ void run() {
    if (!has_rows()) return;
    const int begin = block_.begin / kKeys * kKeys;
    ahead_ = tile_of(begin);
    copy_step(begin, 0);
    load_queries();
    start_sums();
    int buffer = 0;
    for (int at = begin; at < block_.end; at += kKeys) {
      const int next = at + kKeys;
      wait_for_copies<0>();
      __syncthreads();  // all copies are there, and nobody needs the step before any more
      if constexpr (kConverts) {
        convert_step(at);
        if (next < block_.end) copy_step(next, 0);
        __syncthreads();
      } else if (next < block_.end) {
        copy_step(next, buffer ^ 1);
      }
      if (warp_.touch(at, kKeys)) attend(shared_.tiles[buffer], at);
      if constexpr (!kConverts) buffer ^= 1;
    }
    write();
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int lane() { return thread() % 32; }
  __device__ static int warp() { return thread() / 32; }
  __device__ static int own_row(int m, int h) {
    return warp() * Shape::kWarpRows + 16 * m + 8 * h + ResultPlace(lane()).row;
  }
  __device__ bool has_rows() const { return first_ < count_; }
  /// Of a query's place in the list of the segment; of the last one where there is none.
  __device__ int position_of(int place) const {
    return args_.batch.positions[first_row_ + PrefillQuery(min(place, count_ - 1), p_.group).token];
  }
  __device__ SeenPositions seen_by(int place, int rows) const {
    return {position_of(place), position_of(place + rows - 1), args_.window};
  }

  /// A warp brings its own queries, scaled so that powers of two of scores are weights.
  __device__ void load_queries() {
    constexpr int kPairs = ceil_div(kDim, 64);
    const float factor = args_.scale * kLog2E;
    const int dim = static_cast<int>(args_.cache.head_dim);
#pragma unroll 4
    for (int i = 0; i < Shape::kWarpRows; ++i) {
      const int row = warp() * Shape::kWarpRows + i;
      const bool exists = first_ + row < count_;
      const PrefillQuery query(first_ + row, p_.group);
      const int64_t t = first_row_ + query.token, first = (int64_t{head_} * p_.group + query.head_of_group) * dim;
      float2 pair[kPairs];
      float largest = 0;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int col = 64 * j + 2 * lane();
        pair[j] = make_float2(0, 0);
        if (exists && col < dim) {
          pair[j] =
              make_float2(factor * load_at(args_.q, t, first + col), factor * load_at(args_.q, t, first + col + 1));
        }
        largest = fmaxf(largest, fmaxf(fabsf(pair[j].x), fabsf(pair[j].y)));
      }
      const float scale = scale_for(max_lanes(largest)), inverse = inverse_of_scale(scale);
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int col = 64 * j + 2 * lane();
        uint32_t parts[kQueryParts];
        split(pair[j].x * inverse, pair[j].y * inverse, parts);
#pragma unroll
        for (int part = 0; part < kQueryParts; ++part) {
          if (col < kDim) *reinterpret_cast<uint32_t*>(&shared_.queries[part][row][col]) = parts[part];
        }
      }
      if (lane() == 0) shared_.row_scale[row] = scale;
    }
  }

  __device__ void start_sums() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) top_[m][h] = -INFINITY, total_[m][h] = 0;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (float& sum : sums_[m][n]) sum = 0;
      }
    }
  }

  /// What the keys and values of a position lie in.
  __device__ const void* tile_of(int at) const {
    if constexpr (kIsRounded) {
      return static_cast<const RoundedTile<kDim, kCacheParts>*>(p_.rounded.data) +
             (at / kTile - first_tile_) * args_.cache.heads + head_;
    } else {
      return tiles_[at / kTile];
    }
  }

  /// Starts to copy the keys and values of positions [at, at + kKeys), floats to the lanes that convert them.
  __device__ void copy_step(int at, int buffer) {
    if constexpr (kConverts) {
      const auto* keys = static_cast<const float*>(ahead_) + int64_t{head_} * kTile * kDim + at % kTile;
      const auto* values =
          static_cast<const float*>(ahead_) + (args_.cache.heads + head_) * kTile * kDim + at % kTile * kDim;
      for_keys([&](int strip) { copy_strip(shared_.arriving.keys[strip], keys + 8 * strip, kTile); });
      for_values([&](int strip) { copy_strip(shared_.arriving.values[strip], values + 8 * strip, kDim); });
    } else if constexpr (kIsRounded) {
      const auto& tile = *static_cast<const RoundedTile<kDim, kCacheParts>*>(ahead_);
      auto& to = shared_.tiles[buffer];
#pragma unroll
      for (int part = 0; part < kCacheParts; ++part) {
        copy_parts(to, part, &tile.keys[part][0][at % kTile], tile.values[part][at % kTile], kKeys);
      }
      const int scale = thread() - kKeys / 8;
      if (scale < 0) {
        copy_async<4>(&to.key_scale[thread()], &tile.key_scale[at % kTile / 8 + thread()]);
      } else if (scale < kDim / 8) {
        copy_async<4>(&to.value_scale[scale], &tile.value_scale[scale]);
      }
    } else {
      const auto* first = static_cast<const __half*>(ahead_);
      copy_parts(shared_.tiles[buffer], 0, first + int64_t{head_} * kTile * kDim + at % kTile,
                 first + (args_.cache.heads + head_) * kTile * kDim + at % kTile * kDim, block_.end - at);
    }
    end_copy_group();
    if (at + kKeys < block_.end) ahead_ = tile_of(at + kKeys);
  }

  /// Of values the rows that are known, and zeros.
  __device__ static void copy_parts(PrefillTiles<kDim, kCacheParts>& to, int part, const __half* keys,
                                    const __half* values, int known) {
#pragma unroll 1
    for (int i = thread(); i < kDim * (kKeys / 8); i += 32 * kWarps) {
      const int row = i / (kKeys / 8), col = i % (kKeys / 8) * 8;
      copy_async<16>(&to.keys[part][row][col], keys + row * kTile + col);
    }
#pragma unroll 1
    for (int i = thread(); i < kKeys * (kDim / 8); i += 32 * kWarps) {
      const int row = i / (kDim / 8), col = i % (kDim / 8) * 8;
      copy_async_or_zero(&to.values[part][row][col], values + row * kDim + col, row < known);
    }
  }

  template <class Body>
  __device__ static void for_keys(const Body& body) {
    const StripShare share = StripShare::of_keys(warp(), kWarps);
#pragma unroll 1
    for (int strip = share.first; strip < kKeys / 8; strip += share.step) body(strip);
  }
  template <class Body>
  __device__ static void for_values(const Body& body) {
    const StripShare share = StripShare::of_values(warp(), kWarps, kKeys / 8);
#pragma unroll 1
    for (int strip = share.first; strip < kDim / 8; strip += share.step) body(strip);
  }

  template <int kPieces>
  __device__ static void copy_strip(float4 (&to)[kPieces][32], const float* from, int stride) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      copy_async<16>(&to[i][lane()], from + (16 * i + lane() / 2) * stride + lane() % 2 * 4);
    }
  }

  __device__ void convert_step(int at) {
    auto& tiles = shared_.tiles[0];
    if (block_.end < at + kKeys) clear_unknown(block_.end - at);
    for_keys([&](int strip) {
      const float scale = convert_strip(shared_.arriving.keys[strip], tiles.keys, strip, lane());
      if (lane() == 0) tiles.key_scale[strip] = scale;
    });
    for_values([&](int strip) {
      const float scale = convert_strip(shared_.arriving.values[strip], tiles.values, strip, lane());
      if (lane() == 0) tiles.value_scale[strip] = scale / kWeightScale;
    });
  }

  /// What the cache does not hold yet may be anything: zeros for what is past the first `known` positions.
  __device__ void clear_unknown(int known) {
    for_keys([&](int strip) {
      for (auto& piece : shared_.arriving.keys[strip]) {
        for (int i = 0; i < 4; ++i) {
          if (8 * strip + lane() % 2 * 4 + i >= known) reinterpret_cast<float*>(&piece[lane()])[i] = 0;
        }
      }
    });
    for_values([&](int strip) {
      int row = lane() / 2;
      for (auto& piece : shared_.arriving.values[strip]) {
        if (row >= known) piece[lane()] = make_float4(0, 0, 0, 0);
        row += 16;
      }
    });
  }

  /// The step at position `at` for the warp's rows.
  __device__ void attend(const PrefillTiles<kDim, kCacheParts>& tiles, int at) {
    float score[kKeys / 16][kRowTiles][2][4] = {};
    const BlockPlace place(lane());
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t query[kQueryParts][kRowTiles][4];
#pragma unroll
      for (int part = 0; part < kQueryParts; ++part) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          const int row = warp() * Shape::kWarpRows + 16 * m + place.row;
          load_blocks(query[part][m], &shared_.queries[part][row][16 * k + place.col]);
        }
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t key[kCacheParts][4];
#pragma unroll
        for (int part = 0; part < kCacheParts; ++part) {
          load_blocks_transposed(key[part], &tiles.keys[part][16 * k + place.row][16 * n + place.col]);
        }
        multiply_parts(score[n], query, key);
      }
    }
    float keep[kRowTiles][2];
    uint32_t weight[kKeys / 16][kQueryParts][kRowTiles][4];
    weigh(at, tiles, score, keep, weight);
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      // Always false. The branch keeps the assembler from starting all products before it adds any: registers end.
      if (n % 2 == 0 && 16 * n >= static_cast<int>(args_.cache.padded_dim)) break;
      float sum[kRowTiles][2][4] = {};
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
        uint32_t value[kCacheParts][4];
#pragma unroll
        for (int part = 0; part < kCacheParts; ++part) {
          load_blocks_transposed(value[part], &tiles.values[part][16 * k + place.row][16 * n + place.col]);
        }
        multiply_parts(sum, weight[k], value);
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float scale = 1;
          if constexpr (kScales) scale = tiles.value_scale[2 * n + half];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums_[m][2 * n + half][i] = fmaf(sums_[m][2 * n + half][i], keep[m][i / 2], sum[m][half][i] * scale);
          }
        }
      }
    }
  }

  /// Scores become weights: powers of two of what they are more than a whole number that is not below any score so far,
  /// so that `keep`, which earlier sums are multiplied with, is exact.
  __device__ void weigh(int at, const PrefillTiles<kDim, kCacheParts>& tiles,
                        float (&score)[kKeys / 16][kRowTiles][2][4], float (&keep)[kRowTiles][2],
                        uint32_t (&weight)[kKeys / 16][kQueryParts][kRowTiles][4]) {
    const bool masks = !warp_.all_hold(at, kKeys);
    const int first = at + ResultPlace(lane()).col;
    const auto window = static_cast<int>(args_.window);
    float row_scale[kRowTiles][2], shift[kRowTiles][2];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float largest[2] = {-INFINITY, -INFINITY};
      int position[2] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        row_scale[m][h] = shared_.row_scale[own_row(m, h)];
        if (masks) position[h] = shared_.position[own_row(m, h)];
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        float scale = 1;
        if constexpr (kScales) scale = tiles.key_scale[n];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& own = score[n / 2][m][n % 2][i];
          own *= scale;
          if (masks) {
            const int key = first + 8 * n + i % 2, row = position[i / 2];
            if (key > row || (window > 0 && key <= row - window)) own = -INFINITY;
          }
          largest[i / 2] = fmaxf(largest[i / 2], own);
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float top = fmaxf(top_[m][h], ceilf(max_lanes(largest[h], 4) * row_scale[m][h]));
        // Nothing seen so far: keep the sums as the zeros they are.
        keep[m][h] = top == -INFINITY ? 1.0f : fast_exp2(top_[m][h] - top);
        shift[m][h] = top == -INFINITY ? 0.0f : kWeightExponent - top;
        top_[m][h] = top;
        total_[m][h] *= keep[m][h];
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float pair[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            pair[i] = fast_exp2(fmaf(score[n / 2][m][n % 2][2 * h + i], row_scale[m][h], shift[m][h]));
          }
          total_[m][h] += pair[0] + pair[1];
          uint32_t parts[kQueryParts];
          split(pair[0], pair[1], parts);
#pragma unroll
          for (int part = 0; part < kQueryParts; ++part) weight[n / 2][part][m][left_register(n % 2, h)] = parts[part];
        }
      }
    }
  }

  __device__ void write() const {
    with_type(args_.y.dtype, [&]<class T>(T) { write_as<T>(); });
  }

  template <class T>
  __device__ void write_as() const {
    const int dim = static_cast<int>(args_.cache.head_dim), col = ResultPlace(lane()).col;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float total = sum_lanes<4>(total_[m][h]);
        const int place = first_ + own_row(m, h);
        if (place >= count_) continue;
        const float factor = (kScales ? kWeightScale : 1.0f) / total;
        const PrefillQuery query(place, p_.group);
        T* to = static_cast<T*>(args_.y.data) + (first_row_ + query.token) * args_.y.stride +
                (int64_t{head_} * p_.group + query.head_of_group) * dim + col;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          if (8 * n + col >= dim) break;
          to[8 * n] = static_cast<T>(sums_[m][n][2 * h] * factor);
          to[8 * n + 1] = static_cast<T>(sums_[m][n][2 * h + 1] * factor);
        }
      }
    }
  }

  const Parameters& p_;
  const AttentionArgs& args_;
  Memory& shared_;
  int head_, first_, first_row_, count_;  ///< the block's first query in the list of the segment, of `count_` queries
  int first_tile_ = 0;                    ///< what the segment's tile in the first slot has for a number
  const void* const* tiles_ = nullptr;
  const void* ahead_ = nullptr;                    ///< the tile that is copied next
  SeenPositions block_, warp_;                     ///< of the warp none where it has no queries
  float top_[kRowTiles][2], total_[kRowTiles][2];  ///< what weights are relative to, and the lane's share of their sum
  float sums_[kRowTiles][kDim / 8][4];
};

template <int kDim, bool kExact, class Element>
__global__ void __launch_bounds__(32 * PrefillShape<kDim>::kWarps, kDim <= 64 && !kExact ? 3 : 2)
    attention_prefill_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(16) unsigned char attention_prefill_memory[];
  let_successors_begin();
  Worker<kDim, kExact, Element> worker(
      p, *reinterpret_cast<PrefillMemory<kDim, kExact, Element>*>(attention_prefill_memory));
  wait_for_predecessors();
  worker.run();
}

template <int kDim, bool kExact, class Element>
struct Kernel {
  static constexpr size_t kSharedBytes = sizeof(PrefillMemory<kDim, kExact, Element>);

  static Status start(const AttentionArgs& args, const RoundedTiles& rounded, Stream stream) {
    const Parameters p{
        .args = args, .group = static_cast<int>(args.query_heads / args.cache.heads), .rounded = rounded};
    const auto blocks = ceil_div<int64_t>(int64_t{args.batch.max_rows} * p.group, PrefillShape<kDim>::kRows);
    return launch(attention_prefill_kernel<kDim, kExact, Element>,
                  {.grid = dim3(static_cast<unsigned>(args.cache.heads), static_cast<unsigned>(args.batch.count),
                                static_cast<unsigned>(blocks)),
                   .block = dim3(32 * PrefillShape<kDim>::kWarps),
                   .shared_bytes = kSharedBytes},
                  stream, p);
  }
};

/// Calls with the kernel for the arguments, which `is_attention_prefill` takes.
template <class Floats, class Body>
auto with_kernel(const AttentionArgs& args, const Body& body) {
  return with_prefill_dim(args, [&]<int kDim>(std::integral_constant<int, kDim>) {
    const bool is_exact = args.precision == Precision::exact;
    if (args.cache.dtype == DType::f32) {
      return is_exact ? body(Kernel<kDim, true, Floats>()) : body(Kernel<kDim, false, Floats>());
    }
    return is_exact ? body(Kernel<kDim, true, __half>()) : body(Kernel<kDim, false, __half>());
  });
}

}  // namespace

bool fits_prefill_kernel(const AttentionArgs& args, bool is_rounded) noexcept {
  const auto room = static_cast<size_t>(current_device().shared_bytes);
  const auto fits = [&]<class K>(K) { return K::kSharedBytes <= room; };
  return is_rounded ? with_kernel<Rounded>(args, fits) : with_kernel<float>(args, fits);
}

Status start_prefill_kernel(const AttentionArgs& args, const RoundedTiles& rounded, bool is_rounded,
                            Stream stream) noexcept {
  const auto start = [&]<class K>(K) { return K::start(args, rounded, stream); };
  return is_rounded ? with_kernel<Rounded>(args, start) : with_kernel<float>(args, start);
}

}  // namespace hxq::cuda
