// The codebook product for several tokens on Hopper's tensor cores. Weights are the left operand, straight from their
// bytes: looked up into registers, never written anywhere. x is packed once (pack_x.cu) and travels through shared
// memory in a ring. Every block has the same share of the work (gemm_plan.h).

#include <algorithm>

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/pack_x.cuh"

namespace hxq::cuda {
namespace {

struct GemmParameters {
  CodebookWeight weight;
  PackedX x;
  Output y;
  const float* bias;
  const float* low_rank_product;
  int64_t tokens;
  bool accumulate;
  bool weight_changes;
  GemmPlan plan;
};

using Table = LookupTable<true>;

/// The ring of x.
template <int kN>
struct GemmShared {
  static constexpr int kStageBytes = kN * kChunkCols * 2;
  static constexpr int kStages = kN <= 64 ? 8 : 5;

  alignas(1024) unsigned char x[kStages][kStageBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint32_t arrived;  ///< blocks that were done with a tile before
};

/// Rows are read a little at a time: what follows is asked for as well, so that memory is read in longer pieces.
__device__ inline uint4 load_bytes_of_row(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

/// A lane's bytes of one chunk: 16 of row g and 16 of row g + 8 of its warp's 16 rows.
struct RawWeights {
  uint4 upper, lower;
};

__device__ inline uint32_t pair_of(uint32_t first, uint32_t second, bool low_part) {
  return __byte_perm(first, second, low_part ? 0x7632 : 0x5410);
}

/// The left operands of a chunk's four products.
template <bool kTwoLevels>
struct Fragments {
  uint32_t high[4][4];
  uint32_t low[kTwoLevels ? 4 : 1][4];

  __device__ void decode(uint32_t lane_base, const RawWeights& raw) {
    const uint32_t upper[4] = {raw.upper.x, raw.upper.y, raw.upper.z, raw.upper.w};
    const uint32_t lower[4] = {raw.lower.x, raw.lower.y, raw.lower.z, raw.lower.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = i % 2 == 0 ? upper[j] : lower[j];
        const uint32_t first = Table::look_up(lane_base, word, i / 2 * 2);
        const uint32_t second = Table::look_up(lane_base, word, i / 2 * 2 + 1);
        high[j][i] = pair_of(first, second, false);
        if constexpr (kTwoLevels) low[j][i] = pair_of(first, second, true);
      }
    }
  }
};

template <int kN, bool kTwoLevels>
__device__ inline void multiply_chunk(float (&sum)[kN / 2], const Fragments<kTwoLevels>& weights, const void* x) {
  uint64_t operand = hopper::operand_of(x);
  hopper::fence_products();
#pragma unroll
  for (int j = 0; j < 4; ++j, operand += hopper::kOperandStep) {
    hopper::multiply_async<kN>(sum, weights.high[j], operand);
    if constexpr (kTwoLevels) hopper::multiply_async<kN>(sum, weights.low[j], operand);
  }
  hopper::commit_products();
}

/// One value of y from the sum of its products.
__device__ inline void finish_value(const GemmParameters& p, int64_t token, int64_t row, float value) {
  value *= p.weight.level_scale * p.x.scales[token];
  for (int n = 0; n < p.weight.rank; ++n) {
    value = fmaf(p.weight.low_rank_u[row * p.weight.rank + n], p.low_rank_product[token * p.weight.rank + n], value);
  }
  if (p.bias) value += p.bias[row];
  if (p.accumulate) value += load_at(p.y, token, row);
  store_at(p.y, token, row, value);
}

/// A warp's share of the block's items: 16 rows of every tile. Lane l has rows l / 4 and l / 4 + 8 of them, and of each
/// eight columns of the right operand those at l % 4 * 2 and one further.
template <int kN, int kWarpgroups, bool kTwoLevels, bool kAligned>
class Worker {
 public:
  __device__ Worker(const GemmParameters& p, GemmShared<kN>& shared, uint32_t lane_base)
      : p_(p),
        shared_(shared),
        lane_base_(lane_base),
        begin_(p.plan.block_begin(blockIdx.x)),
        count_(static_cast<int>(p.plan.block_begin(blockIdx.x + 1) - begin_)) {
    start_portion(0);
  }

  __device__ void run() {
    if (threadIdx.x == 0) start_ring();
    while (true) {
      start_sums();
      multiply_portion();
      const Portion done = portion_;
      // The next portion's first weights travel while this one is finished.
      if (done.end < count_) start_portion(done.end);
      finish_portion(done);
      if (done.end == count_) return;
    }
  }

 private:
  using Shared = GemmShared<kN>;
  static constexpr int kThreads = kWarpgroups * 128;
  static constexpr int kAhead = kN <= 64 ? 4 : 2;  ///< chunks whose bytes are in flight
  static constexpr int kLag = 2;                   ///< chunks that warps may be apart before thread 0 waits for them

  static constexpr int kOutliersAhead = kN <= 64 ? 2 : 1;

  /// Of the lane's two rows: what is loaded, and what comes after it.
  struct Outliers {
    uint32_t next[2], end[2], step;
    float change[2][kOutliersAhead];
    uint32_t col[2][kOutliersAhead];
  };

  /// Items [first, end) of the block, all of one tile.
  struct Portion {
    int64_t tile;
    int first, end;
    bool begins_tile, ends_tile;
  };

  /// The first of the lane's two rows.
  __device__ int64_t row_in(int64_t tile) const {
    return p_.plan.first_row(tile) + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  }

  __device__ void start_portion(int first) {
    const int64_t item = begin_ + first;
    const int64_t tile = item / p_.plan.chunks;
    const auto chunk = static_cast<int>(item - tile * p_.plan.chunks);
    const int64_t left = p_.plan.chunks - chunk;
    const int end = left < count_ - first ? first + static_cast<int>(left) : count_;
    portion_ = {.tile = tile, .first = first, .end = end, .begins_tile = chunk == 0, .ends_tile = left == end - first};
    const auto* indices = static_cast<const unsigned char*>(p_.weight.indices);
    const int64_t row = row_in(tile), last_row = p_.weight.rows - 1;
    upper_ = indices + min(row, last_row) * p_.weight.cols;
    lower_ = indices + min(row + 8, last_row) * p_.weight.cols;
    col_ = chunk * kChunkCols + static_cast<int>(threadIdx.x % 4) * 16;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load(raw_[i], first + i);
    if (p_.weight.outlier_row_begin) start_outliers(row);
  }

  /// The lane's bytes of an item of the portion. Outside of the matrix they stay what they were: x is zero there.
  __device__ void load(RawWeights& raw, int i) const {
    const int col = col_ + (i - portion_.first) * kChunkCols;
    if (i >= portion_.end || col >= static_cast<int>(p_.weight.cols)) return;
    if constexpr (kAligned) {
      raw.upper = load_bytes_of_row(upper_ + col);
      raw.lower = load_bytes_of_row(lower_ + col);
    } else {
      const auto* last = static_cast<const unsigned char*>(p_.weight.indices) + p_.weight.rows * p_.weight.cols - 1;
      raw.upper = load_bytes_unaligned(upper_ + col, last);
      raw.lower = load_bytes_unaligned(lower_ + col, last);
    }
  }

  // Thread 0 keeps the ring of x filled. The chunks that a block's items want follow each other in memory, from the
  // last back to the first.
  __device__ const char* x_begin() const { return static_cast<const char*>(p_.x.packed); }
  __device__ const char* x_end() const {
    return x_begin() + p_.plan.token_tiles * p_.plan.chunks * Shared::kStageBytes;
  }

  __device__ void start_ring() {
    const int64_t tile = begin_ / p_.plan.chunks;
    next_x_ =
        x_begin() + (begin_ - tile * p_.plan.chunks + p_.plan.token_tile(tile) * p_.plan.chunks) * Shared::kStageBytes;
    for (int i = 0; i < Shared::kStages && i < count_; ++i) fetch_x(i);
  }

  __device__ void fetch_x(int stage) {
    hopper::arrive_and_expect_bytes(&shared_.full[stage], Shared::kStageBytes);
    hopper::copy_bulk(shared_.x[stage], next_x_, Shared::kStageBytes, &shared_.full[stage]);
    next_x_ += Shared::kStageBytes;
    if (next_x_ == x_end()) next_x_ = x_begin();
  }

  /// Called for item i: writes over a chunk that all warps have left behind a while ago.
  __device__ void refill(int i) {
    if (i < kLag || i - kLag + Shared::kStages >= count_) return;
    const bool same_round = stage_ >= kLag;
    const int stage = same_round ? stage_ - kLag : stage_ - kLag + Shared::kStages;
    hopper::wait(&shared_.empty[stage], same_round ? phase_ : phase_ ^ 1);
    fetch_x(stage);
  }

  __device__ void multiply_portion() {
    Fragments<kTwoLevels> weights[2];
    weights[0].decode(lane_base_, raw_[0]);
    for (int first = portion_.first; first < portion_.end; first += kAhead) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int i = first + j;
        if (i >= portion_.end) break;
        if (threadIdx.x == 0) refill(i);
        __syncwarp();
        hopper::wait(&shared_.full[stage_], phase_);
        multiply_chunk<kN>(sum_, weights[j % 2], shared_.x[stage_]);
        load(raw_[j], i + kAhead);
        weights[(j + 1) % 2].decode(lane_base_, raw_[(j + 1) % kAhead]);
        hopper::wait_for_products();
        if (threadIdx.x % 32 == 0) hopper::arrive(&shared_.empty[stage_]);
        if (++stage_ == Shared::kStages) {
          stage_ = 0;
          phase_ ^= 1;
        }
      }
    }
  }

  /// The first token of the lane's columns of eight, and their number of eights.
  __device__ int64_t first_token(int64_t tile) const {
    return p_.plan.token_tile(tile) * p_.plan.tile_tokens() + threadIdx.x % 4 * 2;
  }
  __device__ int token_eights() const { return kN / 8 / p_.plan.parts; }

  /// The first outliers of the lane's rows. The blocks that share a tile take turns with the outliers of a row.
  __device__ void start_outliers(int64_t row) {
    const int64_t first_block = p_.plan.block_of(portion_.tile * p_.plan.chunks);
    outliers_.step =
        static_cast<uint32_t>(p_.plan.block_of((portion_.tile + 1) * p_.plan.chunks - 1) - first_block + 1);
    const auto own = static_cast<uint32_t>(blockIdx.x - first_block);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool exists = row + 8 * half < p_.weight.rows;
      outliers_.next[half] = exists ? p_.weight.outlier_row_begin[row + 8 * half] + own : 0;
      outliers_.end[half] = exists ? p_.weight.outlier_row_begin[row + 8 * half + 1] : 0;
    }
    load_outliers();
  }

  __device__ void load_outliers() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int k = 0; k < kOutliersAhead; ++k, outliers_.next[half] += outliers_.step) {
        const bool is_there = outliers_.next[half] < outliers_.end[half];
        outliers_.change[half][k] = is_there ? p_.weight.outlier_change[outliers_.next[half]] : 0.0f;
        outliers_.col[half][k] = is_there ? p_.weight.outlier_col[outliers_.next[half]] : 0;
      }
    }
  }

  /// Sums start as what outliers add. In the end they are multiplied by powers of two, which are taken out here.
  __device__ void start_sums() {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum_[i] = 0;
    if (!p_.weight.outlier_row_begin) return;
    const float* x = p_.x.transposed + first_token(portion_.tile);
    while (true) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int k = 0; k < kOutliersAhead; ++k) {
          add_outlier(half, outliers_.change[half][k], x + outliers_.col[half][k] * p_.x.transposed_stride);
        }
      }
      if (outliers_.next[0] >= outliers_.end[0] && outliers_.next[1] >= outliers_.end[1]) break;
      load_outliers();
    }
    const float* scales = p_.x.scales + first_token(portion_.tile);
#pragma unroll
    for (int e = 0; e < kN / 8; ++e) {
      if (e >= token_eights()) break;
      const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * e);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum_[4 * e + 2 * half] /= p_.weight.level_scale * scale.x;
        sum_[4 * e + 2 * half + 1] /= p_.weight.level_scale * scale.y;
      }
    }
  }

  __device__ void add_outlier(int half, float change, const float* x) {
#pragma unroll
    for (int e = 0; e < kN / 8; ++e) {
      if (e >= token_eights()) break;
      const float2 v = *reinterpret_cast<const float2*>(x + 8 * e);
      // An outlier that is not there must not make a NaN of an infinite x.
      sum_[4 * e + 2 * half] += change != 0 ? change * v.x : 0.0f;
      sum_[4 * e + 2 * half + 1] += change != 0 ? change * v.y : 0.0f;
    }
  }

  /// Where a block leaves its sums of a tile that others share: a tile that it begins, or one that began elsewhere.
  __device__ float* partial_sums(int64_t block, bool begins_tile) const {
    return p_.x.partial_sums + (block * 2 + begins_tile) * (kN / 2) * kThreads + threadIdx.x;
  }

  __device__ void finish_portion(const Portion& portion) {
    if (portion.begins_tile && portion.ends_tile) return write(portion.tile);
    float* own = partial_sums(blockIdx.x, portion.begins_tile);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) own[i * kThreads] = sum_[i];
    const int64_t first_block = p_.plan.block_of(portion.tile * p_.plan.chunks);
    const int64_t last_block = p_.plan.block_of((portion.tile + 1) * p_.plan.chunks - 1);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) shared_.arrived = atomicAdd(p_.x.counters + portion.tile, 1u);
    __syncthreads();
    if (shared_.arrived != last_block - first_block) return;
    __threadfence();
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum_[i] = 0;
    for (int64_t block = first_block; block <= last_block; ++block) {
      const float* part = partial_sums(block, block == first_block);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sum_[i] += __ldcg(part + i * kThreads);
    }
    write(portion.tile);
  }

  __device__ void write(int64_t tile) const {
    const int64_t row = row_in(tile), token = first_token(tile);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      const int e = i / 4;
      if (e >= token_eights()) break;
      float value = sum_[i];
      if (e < kN / 16 && p_.plan.parts == 2) value = fmaf(sum_[i + kN / 4], kLowPartScale, value);
      const int64_t t = token + 8 * e + i % 2, r = row + i % 4 / 2 * 8;
      if (t < p_.tokens && r < p_.weight.rows) finish_value(p_, t, r, value);
    }
  }

  const GemmParameters& p_;
  Shared& shared_;
  const uint32_t lane_base_;
  const int64_t begin_;  // of the block's items
  const int count_;
  int stage_ = 0;  // of the ring: where the next item's x is
  uint32_t phase_ = 0;
  const char* next_x_ = nullptr;  // thread 0: what the ring gets next
  Portion portion_;
  const unsigned char* upper_;
  const unsigned char* lower_;
  int col_;
  Outliers outliers_;
  RawWeights raw_[kAhead] = {};
  float sum_[kN / 2];
};

template <int kN, int kWarpgroups, bool kTwoLevels, bool kAligned>
__global__ void __launch_bounds__(kWarpgroups * 128, 1) gemm_kernel(const __grid_constant__ GemmParameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<GemmShared<kN>*>(Table::end(memory));
  const uint32_t lane_base = Table::lane_base(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < GemmShared<kN>::kStages; ++i) {
      hopper::init_barrier(&shared.full[i], 1);
      hopper::init_barrier(&shared.empty[i], kWarpgroups * 4);
    }
    hopper::fence_barriers();
  }
  if (p.weight_changes) wait_for_predecessors();
  const TableFill<kWarpgroups * 128> table(p.weight.codebook, p.weight.k);
  Worker<kN, kWarpgroups, kTwoLevels, kAligned> worker(p, shared, lane_base);
  const float inverse_scale = 1.0f / p.weight.level_scale;
  table.template store<Table>(lane_base, [&](float level) { return two_halves(level * inverse_scale); });
  __syncthreads();
  let_successors_begin();
  wait_for_predecessors();
  worker.run();
#endif
}

template <int kN, int kWarpgroups, bool kTwoLevels>
Status launch_tile(const GemmParameters& p, Stream stream) {
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(p.plan.blocks)),
                          .block = dim3(kWarpgroups * 128),
                          .shared_bytes = Table::kSharedBytes + sizeof(GemmShared<kN>)};
  const bool aligned = p.weight.cols % 16 == 0 && reinterpret_cast<uintptr_t>(p.weight.indices) % 16 == 0;
  return aligned ? launch(gemm_kernel<kN, kWarpgroups, kTwoLevels, true>, shape, stream, p)
                 : launch(gemm_kernel<kN, kWarpgroups, kTwoLevels, false>, shape, stream, p);
}

template <bool kTwoLevels>
Status launch_levels(const GemmParameters& p, Stream stream) {
  switch (p.plan.columns) {
    case 8:
      return launch_tile<8, warpgroups_of(8, kTwoLevels), kTwoLevels>(p, stream);
    case 16:
      return launch_tile<16, warpgroups_of(16, kTwoLevels), kTwoLevels>(p, stream);
    case 32:
      return launch_tile<32, warpgroups_of(32, kTwoLevels), kTwoLevels>(p, stream);
    case 64:
      return launch_tile<64, warpgroups_of(64, kTwoLevels), kTwoLevels>(p, stream);
    case 128:
      return launch_tile<128, warpgroups_of(128, kTwoLevels), kTwoLevels>(p, stream);
    default:
      return Status::invalid_value;
  }
}

bool needs_two_levels(const CodebookWeight& weight, Precision precision) {
  return precision == Precision::exact && !weight.levels_fit_half;
}

/// x of F32 has more bits than one binary16 number holds.
int parts_of(Precision precision, DType x) { return precision == Precision::exact && x == DType::f32 ? 2 : 1; }

GemmPlan plan_of(const CodebookWeight& weight, int64_t tokens, Precision precision, DType x) {
  return plan_gemm(weight.rows, weight.cols, tokens, parts_of(precision, x), needs_two_levels(weight, precision),
                   current_device().multiprocessors);
}

}  // namespace

bool supports_codebook_gemm(const CodebookWeight& weight) noexcept {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.level_scale > 0 &&
         current_device().compute_capability == 90;
}

size_t codebook_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept {
  size_t most = 0;
  if (!supports_codebook_gemm(weight)) return most;
  for (const Precision precision : {Precision::exact, Precision::fast}) {
    for (const DType x : {DType::f32, DType::bf16}) {
      // Of fewer tokens, the tiles of which are narrower, at most as many as fill one tile can need more.
      for (int64_t t = tokens; t > 1; t = t > kGemmMaxColumns ? kGemmMaxColumns : t / 2) {
        most = std::max(most, packed_x_bytes(plan_of(weight, t, precision, x)));
      }
    }
  }
  return most;
}

Status codebook_gemm(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                     Stream stream) noexcept {
  const GemmPlan plan = plan_of(weight, args.tokens, args.precision, args.x.dtype);
  const PackedX x = place_packed_x(plan, weight.outlier_row_begin != nullptr, args.workspace);
  if (const Status status = pack_x(args, weight, plan, x, stream); status != Status::ok) return status;
  const GemmParameters p{.weight = weight,
                         .x = x,
                         .y = args.y,
                         .bias = args.bias,
                         .low_rank_product = low_rank_product,
                         .tokens = args.tokens,
                         .accumulate = args.accumulate,
                         .weight_changes = args.weight_changes,
                         .plan = plan};
  return needs_two_levels(weight, args.precision) ? launch_levels<true>(p, stream) : launch_levels<false>(p, stream);
}

}  // namespace hxq::cuda
