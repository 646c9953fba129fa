// The codebook product for many tokens on Hopper. Weights are the left operand of `wgmma`, looked up from their bytes
// straight into registers while the chunk before is multiplied. One thread brings bytes and packed x (pack_x.cu) ahead;
// where two blocks are a cluster, each brings half of x to both. Blocks take units of work in turn (tile_gemm_plan.h).

#include <utility>

#include "kernels/cuda/hopper_cluster.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_gemm.cuh"
#include "kernels/cuda/tile_gemm_shared.cuh"
#include "kernels/cuda/tile_gemm_sums.cuh"
#include "kernels/cuda/tile_outliers.cuh"

namespace hxq::cuda {
namespace {

using namespace tiles;

/// Brings bytes of weights and x, in the order in which they are multiplied. One thread.
template <int kN>
class Bringer {
 public:
  __device__ explicit Bringer(const Parameters& p) : p_(p), at_(p.plan), ahead_(p.plan) {}

  /// What no kernel writes: bytes, as many as there is room for.
  __device__ void bring_first_bytes() {
    for (int i = 0; i < L::kByteStages; ++i) bring_bytes();
  }

  __device__ void run() {
    for (uint32_t parity = 0; !at_.done(); parity ^= 1) {
      while (at_.chunk < at_.end) {
        bring_x();
        if (ends_ >> kBehind & 1) bring_bytes();  // those that were there have been read, or soon will be
      }
      at_.next_unit();
      if (!at_.done()) hopper::wait(L::drained(), parity);
    }
  }

 private:
  using L = Layout<kN>;
  /// Stages of x by which bytes are brought later than x: no unit may wait for bytes that come after it.
  static constexpr int kBehind = L::kXStages - 1 < L::kByteStages ? L::kXStages - 1 : L::kByteStages;

  __device__ void bring_bytes() {
    if (ahead_.done()) return;
    uint64_t* full = L::full_bytes(byte_stage_.index);
    hopper::wait(L::empty_bytes(byte_stage_.index), byte_stage_.parity ^ 1);  // passes in the first round
    hopper::arrive_and_expect_bytes(full, L::kByteTile);
    hopper::copy_box(L::bytes(byte_stage_.index), p_.map, ahead_.chunk * kCols, static_cast<int>(ahead_.first_row()),
                     full);
    byte_stage_.advance();
    ahead_.chunk += kByteChunks;
    if (ahead_.chunk >= ahead_.end) ahead_.next_unit();
  }

  __device__ void bring_x() {
    uint64_t* full = L::full_x(x_stage_.index);
    const int chunks = min(L::kXChunks, at_.end - at_.chunk), bytes = chunks * L::kXBytes;
    hopper::wait(L::empty_x(x_stage_.index), x_stage_.parity ^ 1);  // of both blocks
    hopper::arrive_and_expect_bytes(full, bytes);
    const char* from =
        static_cast<const char*>(p_.x.packed) + (int64_t{at_.token_tile} * p_.plan.chunks + at_.chunk) * L::kXBytes;
    if (p_.plan.share == 1) {
      hopper::copy_bulk(L::x(x_stage_.index), from, bytes, full);
    } else {
      const int half = at_.slot * (bytes / 2);
      hopper::copy_bulk_to_cluster(L::x(x_stage_.index) + half, from + half, bytes / 2, full, 3);
    }
    x_stage_.advance();
    at_.chunk += chunks;
    ends_ = ends_ << 1 | (at_.chunk == at_.end || at_.chunk % kByteChunks == 0 ? 1 : 0);
  }

  const Parameters& p_;
  Cursor at_, ahead_;  ///< whose x, and whose bytes, are brought next
  hopper::RingPlace<L::kXStages> x_stage_;
  hopper::RingPlace<L::kByteStages> byte_stage_;
  uint32_t ends_ = 0;  ///< a bit for each of the last stages of x: with it bytes that came together end
};

/// A thread of the warpgroups. Of its warp's 16 rows lane l has rows l / 4 and l / 4 + 8, and of each eight tokens
/// those at l % 4 * 2 and one further.
template <int kN, bool kPlaces>
class Multiplier {
 public:
  __device__ explicit Multiplier(const Parameters& p)
      : p_(p), lane_base_(NarrowTable::lane_base(L::at(L::kTable))), outliers_(p) {}

  __device__ void run() {
    for (Cursor at(p_.plan); !at.done(); at.next_unit()) {
      if (places()) outliers_.start(own_row(), at.chunk);
      multiply(at.end - at.chunk);
      wait_for_predecessors();  // of this thread: it reads what the packing kernel wrote
      TileSums<kN, kPlaces>(p_, at).finish(sum_);
    }
  }

 private:
  using L = Layout<kN>;
  using Fragments = uint32_t[4][4];  ///< the left operands of a chunk's four products

  __device__ bool places() const { return kPlaces && p_.weight.outlier_row_begin; }

  __device__ void decode(Fragments& weights, const uint4& upper, const uint4& lower) {
    const uint32_t up[4] = {upper.x, upper.y, upper.z, upper.w}, low[4] = {lower.x, lower.y, lower.z, lower.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = i % 2 == 0 ? up[j] : low[j];
        weights[j][i] = __byte_perm(NarrowTable::look_up(lane_base_, word, i / 2 * 2),
                                    NarrowTable::look_up(lane_base_, word, i / 2 * 2 + 1), 0x5410);
      }
    }
    if (places()) outliers_.place(weights);
  }

  /// The lane's 16 bytes of the next chunk, of those that come together the second or the first, of each of its rows.
  template <bool kSecond>
  __device__ void load(uint4& upper, uint4& lower) const {
    if (!kSecond) hopper::wait(L::full_bytes(byte_stage_.index), byte_stage_.parity);
    const int row = own_row(), piece = (kSecond ? 4 : 0) + static_cast<int>(threadIdx.x) % 4;
    const unsigned char* from = L::bytes(byte_stage_.index) + row * kByteChunks * kCols + (piece ^ row % 8) * 16;
    upper = *reinterpret_cast<const uint4*>(from);
    lower = *reinterpret_cast<const uint4*>(from + 8 * kByteChunks * kCols);
  }

  __device__ void leave_bytes() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) hopper::arrive(L::empty_bytes(byte_stage_.index));
    byte_stage_.advance();
  }

  /// Multiplies one chunk, of two the second or the first, and looks up the next. Whether there is one.
  template <bool kSecond>
  __device__ bool step(const Fragments& now, Fragments& next) {
    constexpr bool kBegins = L::kXChunks == 1 || !kSecond, kEnds = L::kXChunks == 1 || kSecond;  // a stage of x
    const int stage = x_stage_.index;
    if (kBegins) hopper::wait(L::full_x(stage), x_stage_.parity);
    const uint64_t x = hopper::operand_of(L::x(stage) + (kBegins ? 0 : L::kXBytes));
    hopper::fence_products();
#pragma unroll
    for (int j = 0; j < 4; ++j) hopper::multiply_async<kN>(sum_, now[j], x + j * hopper::kOperandStep);
    hopper::commit_products();
    const bool more = --left_ > 0;
    if (kEnds || !more) x_stage_.advance();
    uint4 upper, lower;
    if (more) load<!kSecond>(upper, lower);
    hopper::wait_for_products_but_last();
    if (kBegins && before_ >= 0) tell_bringers(p_.plan, L::empty_x(before_));
    before_ = stage;
    if (more) {
      decode(next, upper, lower);
      if (!kSecond || left_ == 1) leave_bytes();
    }
    return more;
  }

  __device__ void multiply(int chunks) {
    Fragments first, second;
    uint4 upper, lower;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum_[i] = 0;
    left_ = chunks;
    before_ = -1;
    load<false>(upper, lower);
    decode(first, upper, lower);
    if (chunks == 1) leave_bytes();
#pragma unroll 1
    while (step<false>(first, second) && step<true>(second, first)) {
    }
    hopper::wait_for_products();
    tell_bringers(p_.plan, L::empty_x(before_));
  }

  const Parameters& p_;
  const uint32_t lane_base_;
  OutlierPlacer<kN> outliers_;
  hopper::RingPlace<L::kXStages> x_stage_;
  hopper::RingPlace<L::kByteStages> byte_stage_;
  int left_ = 0, before_ = -1;  ///< chunks of the unit; the stage of x before this one
  float sum_[kN / 2];
};

template <int kN, bool kPlaces>
__global__ void __launch_bounds__(65536 / Layout<kN>::kRegisters / 128 * 128, 1)
    tile_gemm_kernel(const __grid_constant__ Parameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using L = Layout<kN>;
  if (hopper::shared_address(dynamic_shared) % NarrowTable::kBytes != L::kStart) __trap();
  const auto start_together = [&] {
    if (p.plan.share > 1) {
      hopper::cluster_barrier();  // the other block's barriers are there
    } else {
      __syncthreads();
    }
  };
  if (threadIdx.x >= kMultipliers) {
    hopper::shrink_registers<L::kBringerRegisters>();
    const bool brings = threadIdx.x == kMultipliers;
    Bringer<kN> bringer(p);
    if (brings) {
      for (int i = 0; i < L::kXStages; ++i) {
        hopper::init_barrier(L::full_x(i), 1);
        hopper::init_barrier(L::empty_x(i), kMultipliers / 32 * p.plan.share);
      }
      for (int i = 0; i < L::kByteStages; ++i) {
        hopper::init_barrier(L::full_bytes(i), 1);
        hopper::init_barrier(L::empty_bytes(i), kMultipliers / 32);
      }
      hopper::init_barrier(L::drained(), kMultipliers / 32 * p.plan.share);
      if (!kPlaces) {
        for (uint64_t& full : L::added_outliers().full) hopper::init_barrier(&full, 1);
      }
      hopper::fence_barriers();
      bringer.bring_first_bytes();
    }
    __syncwarp();
    start_together();
    let_successors_begin();
    const int thread = static_cast<int>(threadIdx.x) - kMultipliers - 32;
    if (kPlaces && thread >= 0 && p.weight.outlier_row_begin) list_outliers<kN>(p, thread);
    wait_for_predecessors();
    if (brings) bringer.run();
    if (!kPlaces && thread >= 0 && p.weight.outlier_row_begin) add_outliers<kN>(p, thread);
    __syncwarp();
    if (p.plan.joins) hopper::cluster_barrier();  // the warps that multiply have kept their sums
  } else {
    hopper::grow_registers<L::kMultiplierRegisters>();
    const TableFill<kMultipliers> table(p.weight.codebook, p.weight.k);
    Multiplier<kN, kPlaces> multiplier(p);
    table.template store<NarrowTable>(NarrowTable::lane_base(L::at(L::kTable)),
                                      [&](float level) { return two_halves(level * p.inverse_scale); });
    start_together();
    multiplier.run();
    __syncwarp();
  }
  // The other block may still write and read here, and tell that it has read.
  if (p.plan.blocks_of_cluster() > 1) hopper::cluster_barrier();
#else
  __trap();  // built for another GPU
#endif
}

template <int kN, bool kPlaces>
Status launch_tiles(const Parameters& p, Stream stream) {
  return launch(tile_gemm_kernel<kN, kPlaces>,
                {.grid = dim3(static_cast<unsigned>(p.plan.clusters * p.plan.share)),
                 .block = dim3(kThreads),
                 .shared_bytes = Layout<kN>::kDynamicBytes,
                 .cluster = p.plan.blocks_of_cluster()},
                stream, p);
}

/// What the kernel needs of the workspace, one after the other.
struct Memory {
  size_t packed, scales, transposed, outlier_sums, partial_sums, counters;

  size_t total() const { return packed + scales + transposed + outlier_sums + partial_sums + counters; }
};

/// For any plan of up to `tokens` tokens.
Memory memory_for(const CodebookWeight& weight, int64_t tokens) {
  const auto cols = static_cast<size_t>(ceil_div<int64_t>(weight.cols, kCols) * kCols);
  const auto rows = static_cast<size_t>(ceil_div<int64_t>(weight.rows, 2 * kRows) * 2 * kRows);
  const auto padded = static_cast<size_t>(most_padded_tokens(tokens));
  const auto blocks = static_cast<size_t>(current_device().multiprocessors);
  const size_t tile = static_cast<size_t>(kRows * widest_tile(tokens)) * 4;
  return {.packed = round_up<1024>(padded * cols * 2),
          .scales = round_up<1024>(padded * 4),
          .transposed = round_up<1024>(weight.outlier_row_begin ? padded * cols * 2 : 0),
          .outlier_sums = round_up<1024>(weight.outlier_row_begin ? 2 * blocks * tile : 0),
          .partial_sums = round_up<1024>(blocks * tile),  // splits of a tile are there only where all units run at once
          .counters = round_up<1024>(rows / kRows * (padded / 64) * 4)};
}

/// Of many tokens, and of some where tiles have few chunks, outliers are put among the weights: multiplied beside them,
/// in float, they would take longer than the rest. With this power of two more in the scale binary16 has room for them
/// and for small levels: the largest level is in [2^6, 2^7) then. Their columns have 16 bits.
constexpr float kPlacedScale = 256;
constexpr int64_t kMostPlacedCols = 65536 - kCols;
constexpr int kFewChunks = 24;

bool places_outliers(const TileGemmPlan& plan, const CodebookWeight& weight, Precision precision) {
  if (precision == Precision::exact || weight.cols > kMostPlacedCols) return false;
  return plan.columns == TileGemmPlan::kMostColumns || (plan.columns == 128 && plan.chunks <= kFewChunks);
}

TileGemmPlan plan_of(const CodebookWeight& weight, int64_t tokens) {
  const DeviceFacts facts = current_device();
  return plan_tile_gemm(weight.rows, weight.cols, tokens, facts.multiprocessors, facts.clusters[2]);
}

bool supports_tiles(const CodebookWeight& weight) {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.level_scale > 0 &&
         (!weight.outlier_row_begin || weight.fits_tiles) && weight.rows > 0 && weight.cols > 0 &&
         weight.cols % 16 == 0 && is_aligned(weight.indices, 16) && current_device().compute_capability == 90;
}

}  // namespace

bool supports_tile_gemm(const CodebookWeight& weight, const LinearArgs& args) noexcept {
  const bool keeps_all = args.x.dtype != DType::f32 && !weight.channel_scales && weight.levels_fit_half;
  return supports_tiles(weight) && args.tokens >= kLeastTileTokens && (args.precision == Precision::fast || keeps_all);
}

bool tile_gemm_beats_panels(const CodebookWeight& weight, int64_t tokens) noexcept {
  return beats_panels(plan_of(weight, tokens), weight.rows, weight.cols, tokens);
}

size_t tile_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept {
  return supports_tiles(weight) && tokens >= kLeastTileTokens ? memory_for(weight, tokens).total() : 0;
}

Status tile_gemm(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                 Stream stream) noexcept {
  const TileGemmPlan plan = plan_of(weight, args.tokens);
  const bool places = places_outliers(plan, weight, args.precision);
  const float scale = weight.level_scale * (places ? kPlacedScale : 1);
  Parameters p{.weight = weight,
               .scale = scale,
               .inverse_scale = 1.0f / scale,
               .y = args.y,
               .y_is_aligned = args.y.stride % 4 == 0 && is_aligned(args.y.data, 16),
               .bias = args.bias,
               .low_rank_product = low_rank_product,
               .tokens = args.tokens,
               .accumulate = args.accumulate,
               .plan = plan};
  p.plain_y = p.y_is_aligned && p.y.dtype == DType::f32 && weight.rows % 4 == 0 && weight.rank == 0 &&
              !args.accumulate && is_aligned(args.bias, 16);
  p.padded_tokens = int64_t{p.plan.token_tiles} * p.plan.columns;
  const Memory memory = memory_for(weight, args.tokens);
  char* next = static_cast<char*>(args.workspace.data);
  const auto take = [&](size_t bytes) { return std::exchange(next, next + bytes); };
  p.x.packed = take(memory.packed);
  p.x.scales = reinterpret_cast<float*>(take(memory.scales));
  char* transposed = take(memory.transposed);
  p.x.transposed = !places && weight.outlier_row_begin ? transposed : nullptr;
  p.x.outlier_sums = reinterpret_cast<float*>(take(memory.outlier_sums));
  p.partial_sums = reinterpret_cast<float*>(take(memory.partial_sums));
  p.counters = reinterpret_cast<uint32_t*>(take(memory.counters));
  p.x.counters = p.counters;
  p.x.counter_count = p.plan.splits > 1 ? p.plan.tiles() : 0;
  if (!make_tensor_map({.data = weight.indices,
                        .rows = weight.rows,
                        .cols = weight.cols,
                        .stride = weight.cols,
                        .bytes = true,
                        .wide = true,
                        .box_rows = kRows},
                       &p.map)) {
    return Status::not_supported;
  }
  const GemmPlan packing{.columns = p.plan.columns, .token_tiles = p.plan.token_tiles, .steps = p.plan.chunks};
  if (const Status status = pack_x(args, weight, packing, p.x, stream); status != Status::ok) return status;
  switch (p.plan.columns) {
    case 64:
      return launch_tiles<64, false>(p, stream);
    case 128:
      return places ? launch_tiles<128, true>(p, stream) : launch_tiles<128, false>(p, stream);
    default:
      return places ? launch_tiles<256, true>(p, stream) : launch_tiles<256, false>(p, stream);
  }
}

}  // namespace hxq::cuda
