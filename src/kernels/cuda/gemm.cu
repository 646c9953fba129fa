// The codebook product for several tokens on Hopper's tensor cores. Weights are the left operand, straight from their
// bytes: looked up into registers, never written anywhere. A warp brings bytes and packed x (pack_x.cu) to shared
// memory ahead of the warpgroups that multiply; the blocks that share a tile add up through each other's shared memory
// (gemm_plan.h).

#include <cooperative_groups.h>

#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm_bringer.cuh"
#include "kernels/cuda/gemm_outliers.cuh"
#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/tensor_map.h"

namespace hxq::cuda {
namespace {

using namespace gemm;

__device__ inline uint32_t pair_of(uint32_t first, uint32_t second, bool low_part) {
  return __byte_perm(first, second, low_part ? 0x7632 : 0x5410);
}

/// The left operands of two products: half of a chunk.
template <bool kTwoLevels>
struct Fragments {
  uint32_t high[2][4];
  uint32_t low[kTwoLevels ? 2 : 1][4];

  /// Words of row g and of row g + 8.
  __device__ void decode(uint32_t lane_base, const uint32_t* upper, const uint32_t* lower) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = i % 2 == 0 ? upper[j] : lower[j];
        const uint32_t first = WideTable::look_up(lane_base, word, i / 2 * 2);
        const uint32_t second = WideTable::look_up(lane_base, word, i / 2 * 2 + 1);
        high[j][i] = pair_of(first, second, false);
        if constexpr (kTwoLevels) low[j][i] = pair_of(first, second, true);
      }
    }
  }
};

/// One value of y from the sum of its products.
__device__ inline void finish_value(const Parameters& p, const FusedProduct& product, int64_t token, int64_t row,
                                    float value) {
  const CodebookWeight& weight = product.weight;
  if (token >= p.tokens || row >= weight.rows) return;
  value = value * p.x.scales[token] * weight.level_scale;
  for (int n = 0; n < weight.rank; ++n) {
    value = fmaf(weight.low_rank_u[row * weight.rank + n], product.low_rank_product[token * weight.rank + n], value);
  }
  if (product.bias) value += product.bias[row];
  if (product.accumulate) value += load_at(product.y, token, row);
  store_at(product.y, token, row, value);
}

/// A thread of the warpgroups. Of its warp's 16 rows lane l has rows l / 4 and l / 4 + 8, and of each eight columns of
/// the right operand those at l % 4 * 2 and one further.
template <int kN, int kRowGroups, bool kTwoLevels, bool kAligned>
class Multiplier {
 public:
  __device__ Multiplier(const Parameters& p, const Part& part)
      : p_(p),
        part_(part),
        lane_base_(WideTable::lane_base(L::at(L::kTable))),
        tile_(p.cluster() - part.first_cluster) {
    start_tile();
  }

  /// Multiplies the block's part of a tile, but for its outliers.
  __device__ void multiply_tile() {
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum_[i] = 0;
    if (step_ < last_) multiply_steps();
  }

  /// Adds up what blocks and warpgroups have of a tile, and writes it: the blocks share its sums.
  __device__ void reduce_tile() {
    // Sums overwrite what others may still multiply.
    if (!L::kKeepsRing) asm volatile("bar.sync 1, %0;" ::"n"(L::kMultipliers) : "memory");
#pragma unroll
    for (int round = 0; round < L::kRounds; ++round) {
      if (round > 0) hopper::cluster_barrier();
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        if (round_of(i) == round) partial()[(warpgroup() * kKept + kept_place(i)) * kGroup + thread()] = sum_[i];
      }
      hopper::cluster_barrier();
      add_up(round);
    }
    hopper::fence_cluster_tiles();
    hopper::cluster_barrier();
  }

  __device__ void next_tile() {
    tile_ += part_.clusters;
    start_tile();
  }

 private:
  using L = Layout<kN, kRowGroups>;
  static constexpr int kKept = kN / 2 / L::kRounds;  ///< sums of a thread that a round takes

  // Recomputed where they are wanted: registers are few.
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kGroup; }
  __device__ static int warpgroup() { return static_cast<int>(threadIdx.x) / kGroup; }
  __device__ static int k_group() { return warpgroup() / kRowGroups; }
  /// From the first row of a tile to the first of the lane's.
  __device__ static int row_in_tile(int row_group) { return row_group * 64 + thread() / 32 * 16 + thread() % 32 / 4; }
  __device__ int64_t first_row() const { return p_.plan.first_row(tile_) + row_in_tile(warpgroup() % kRowGroups); }
  /// Sum i is of this token and row from the lane's first ones.
  __device__ static constexpr int token_step(int i) { return i / 4 * 8 + i % 2; }
  __device__ static constexpr int row_step(int i) { return i % 4 / 2 * 8; }

  __device__ void start_tile() {
    const auto split = static_cast<int>(hopper::block_in_cluster());
    step_ = p_.plan.first_step(split);
    last_ = tile_ < part_.tiles ? p_.plan.first_step(split + 1) : step_;
  }

  /// The lane's 16 bytes of a chunk of each of its rows.
  __device__ void load(uint4& upper, uint4& lower) const {
    if constexpr (kAligned) {
      const unsigned char* from = L::weights(place_.index) + k_group() * L::kBoxBytes +
                                  row_in_tile(warpgroup() % kRowGroups) * kChunkCols + thread() % 4 * 16;
      upper = *reinterpret_cast<const uint4*>(from);
      lower = *reinterpret_cast<const uint4*>(from + 8 * kChunkCols);
    } else {
      // Outside of the matrix bytes stay what they were: x is zero there.
      const int64_t col = (step_ * L::kKGroups + k_group()) * kChunkCols + thread() % 4 * 16;
      if (col >= part_.product.weight.cols) return;
      const auto* indices = static_cast<const unsigned char*>(part_.product.weight.indices);
      const unsigned char* last = indices + part_.product.weight.rows * part_.product.weight.cols - 1;
      const int64_t row = first_row(), last_row = part_.product.weight.rows - 1;
      upper = load_bytes_unaligned(indices + min(row, last_row) * part_.product.weight.cols + col, last);
      lower = load_bytes_unaligned(indices + min(row + 8, last_row) * part_.product.weight.cols + col, last);
    }
  }

  __device__ void multiply_half(const Fragments<kTwoLevels>& weights, uint64_t operand) {
    hopper::fence_products();
#pragma unroll
    for (int j = 0; j < 2; ++j, operand += hopper::kOperandStep) {
      hopper::multiply_async<kN>(sum_, weights.high[j], operand);
      if constexpr (kTwoLevels) hopper::multiply_async<kN>(sum_, weights.low[j], operand);
    }
    hopper::commit_products();
  }

  __device__ void leave(int stage) const {
    if (threadIdx.x % 32 == 0) hopper::arrive(L::empty(stage));
  }

  /// While one half of a chunk is multiplied the next is looked up.
  __device__ void multiply_steps() {
    Fragments<kTwoLevels> first, second;
    uint4 upper = {}, lower = {};
    hopper::wait(L::full(place_.index), place_.parity);
    load(upper, lower);
    first.decode(lane_base_, &upper.x, &lower.x);
    int before = -1;
#pragma unroll 1
    while (true) {
      const int stage = place_.index;
      const uint64_t operand = hopper::operand_of(L::x(stage) + k_group() * L::kXBytes);
      multiply_half(first, operand);
      if (before >= 0) {
        hopper::wait_for_products_but_last();
        leave(before);
      }
      second.decode(lane_base_, &upper.z, &lower.z);
      multiply_half(second, operand + 2 * hopper::kOperandStep);
      place_.advance();
      before = stage;
      if (++step_ == last_) break;
      hopper::wait(L::full(place_.index), place_.parity);
      load(upper, lower);
      hopper::wait_for_products_but_last();
      first.decode(lane_base_, &upper.x, &lower.x);
    }
    hopper::wait_for_products();
    leave(before);
  }

  /// Of each half of the sums (the two parts of x, where there are two) a round takes a part.
  __device__ static constexpr int round_of(int i) { return i % (kN / 4) / (kN / 4 / L::kRounds); }
  __device__ static constexpr int kept_place(int i) {
    return i / (kN / 4) * (kKept / 2) + i % (kN / 4) % (kN / 4 / L::kRounds);
  }
  /// The sum that lies at a place.
  __device__ static int kept_sum(int place, int round) {
    return place / (kKept / 2) * (kN / 4) + round * (kN / 4 / L::kRounds) + place % (kKept / 2);
  }

  __device__ static float* partial() { return reinterpret_cast<float*>(L::at(L::kSums)); }

  __device__ void add_up(int round) {
    constexpr int kAtOnce = 4;
    const auto cluster = cooperative_groups::this_cluster();
    const int kept = kKept / p_.plan.parts, count = kRowGroups * kept, step = p_.plan.splits * L::kWarpgroups;
    const int64_t tile_row = p_.plan.first_row(tile_), tile_token = p_.plan.token_tile(tile_) * p_.plan.tile_tokens();
    const float* outliers = part_.product.weight.outlier_row_begin ? outlier_sums(p_) : nullptr;
#pragma unroll 1
    for (int first = static_cast<int>(hopper::block_in_cluster()) * L::kWarpgroups + warpgroup(); first < count;
         first += kAtOnce * step) {
      float value[kAtOnce], low[kAtOnce];
      int row[kAtOnce], token[kAtOnce], from[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int index = min(first + u * step, count - 1);  // what is too much is not stored
        const int row_group = index / kept, place = index % kept, i = kept_sum(place, round);
        row[u] = row_in_tile(row_group) + row_step(i);
        token[u] = thread() % 4 * 2 + token_step(i);
        from[u] = (row_group * kKept + place) * kGroup + thread();
        value[u] = outliers ? outliers[row[u] * p_.plan.tile_tokens() + token[u]] : 0.0f;
        low[u] = 0;
      }
#pragma unroll 1
      for (int split = 0; split < p_.plan.splits; ++split) {
        const float* there = cluster.map_shared_rank(partial(), static_cast<unsigned>(split));
#pragma unroll
        for (int q = 0; q < L::kKGroups; ++q) {
#pragma unroll
          for (int u = 0; u < kAtOnce; ++u) {
            const float* sums = there + q * kRowGroups * kKept * kGroup + from[u];
            value[u] += *sums;
            if (p_.plan.parts == 2) low[u] += sums[kKept / 2 * kGroup];
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (first + u * step >= count) break;
        finish_value(p_, part_.product, tile_token + token[u], tile_row + row[u],
                     fmaf(low[u], kLowPartScale, value[u]));
      }
    }
  }

  const Parameters& p_;
  const Part& part_;
  const uint32_t lane_base_;
  int64_t tile_;
  int step_, last_;
  hopper::RingPlace<L::kStages> place_;
  float sum_[kN / 2];
};

template <int kN, int kRowGroups, bool kTwoLevels, bool kAligned>
__global__ void __launch_bounds__(65536 / Layout<kN, kRowGroups>::kRegisters / 128 * 128, 1)
    gemm_kernel(const __grid_constant__ Parameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using L = Layout<kN, kRowGroups>;
  if (hopper::shared_address(dynamic_shared) % L::kTableBytes != L::kStart) __trap();
  const Part& part = p.part();
  const CodebookWeight& weight = part.product.weight;
  const int64_t first_tile = p.cluster() - part.first_cluster;
  if (threadIdx.x >= L::kMultipliers) {
    hopper::shrink_registers<L::kBringerRegisters>();
    const bool brings = threadIdx.x == L::kMultipliers;
    auto& outliers = *reinterpret_cast<typename L::Outliers*>(L::at(L::kOutliers));
    Bringer<kN, kRowGroups, kAligned> bringer(p, part);
    if (brings) {
      for (int i = 0; i < L::kStages; ++i) {
        hopper::init_barrier(L::full(i), 1);
        hopper::init_barrier(L::empty(i), L::kWarpgroups * 4);
      }
      hopper::init_barrier(&outliers.full[0], 1);
      hopper::init_barrier(&outliers.full[1], 1);
      hopper::fence_barriers();
      bringer.bring_first_weights();
    }
    __syncthreads();
    let_successors_begin();
    wait_for_predecessors();
    const int thread = static_cast<int>(threadIdx.x) - L::kMultipliers - 32;
    const bool adds = thread >= 0 && weight.outlier_row_begin;
    uint32_t piece = 0;
    for (int64_t tile = first_tile; tile < part.tiles; tile += part.clusters) {
      if (brings) bringer.bring_tile();
      if (adds && p.plan.parts == 1) {
        using Adder = OutlierAdder<PartOutliers, __half, kN, L::kPieceBytes>;
        piece = Adder({p, part, tile}, outliers, thread).add(piece);
      } else if (adds) {
        if constexpr (kN > 8) {
          using Adder = OutlierAdder<PartOutliers, float, kN / 2, L::kPieceBytes>;
          piece = Adder({p, part, tile}, outliers, thread).add(piece);
        }
      }
      __syncwarp();
      for (int i = 0; i < 2 * L::kRounds; ++i) hopper::cluster_barrier();
    }
  } else {
    hopper::grow_registers<L::kMultiplierRegisters>();
    const TableFill<L::kMultipliers> table(weight.codebook, weight.k);
    Multiplier<kN, kRowGroups, kTwoLevels, kAligned> multiplier(p, part);
    table.template store<WideTable>(WideTable::lane_base(L::at(L::kTable)),
                                    [&](float level) { return two_halves(level * part.inverse_level_scale); });
    __syncthreads();
    wait_for_predecessors();
    for (int64_t tile = first_tile; tile < part.tiles; tile += part.clusters) {
      multiplier.multiply_tile();
      multiplier.reduce_tile();
      multiplier.next_tile();
    }
  }
#else
  __trap();  // built for another GPU
#endif
}

template <int kN, int kRowGroups, bool kTwoLevels, bool kAligned>
Status launch_kernel(const Parameters& p, Stream stream) {
  using L = Layout<kN, kRowGroups>;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(p.plan.clusters * p.plan.splits)),
                          .block = dim3(L::kThreads),
                          .shared_bytes = L::kDynamicBytes,
                          .cluster = p.plan.splits};
  return launch(gemm_kernel<kN, kRowGroups, kTwoLevels, kAligned>, shape, stream, p);
}

/// Plain: aligned rows, one number for each level.
bool is_plain(const CodebookWeight& weight, Precision precision) {
  return weight.cols % 16 == 0 && reinterpret_cast<uintptr_t>(weight.indices) % 16 == 0 &&
         (precision == Precision::fast || weight.levels_fit_half);
}

template <int kN>
Status launch_plain(const Parameters& p, Stream stream) {
  if constexpr (kN <= 64) {
    if (p.plan.row_groups == 2) return launch_kernel<kN, 2, false, true>(p, stream);
  }
  if constexpr (kN <= 32) {
    if (p.plan.row_groups == 1) return launch_kernel<kN, 1, false, true>(p, stream);
  }
  return launch_kernel<kN, kGemmWarpgroups, false, true>(p, stream);
}

template <int kN>
Status launch_any(const Parameters& p, bool plain, bool two_levels, Stream stream) {
  if (plain) return launch_plain<kN>(p, stream);
  return two_levels ? launch_kernel<kN, 4, true, false>(p, stream) : launch_kernel<kN, 4, false, false>(p, stream);
}

/// The matrices, and which clusters each has.
Status set_parts(const FusedProduct* products, bool plain, Parameters& p) {
  int64_t tiles[kMaxFusedProducts], share[kMaxFusedProducts], first = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    tiles[i] = p.plan.row_tiles_of(products[i].weight.rows) * p.plan.token_tiles;
  }
  share_blocks({tiles, static_cast<size_t>(p.count)}, p.plan.clusters, share);
  for (int64_t i = 0; i < p.count; ++i) {
    const CodebookWeight& weight = products[i].weight;
    p.parts[i] = {.product = products[i],
                  .inverse_level_scale = 1.0f / weight.level_scale,
                  .tiles = tiles[i],
                  .first_cluster = first,
                  .clusters = share[i]};
    first += share[i];
    const MappedMatrix bytes{.data = weight.indices,
                             .rows = weight.rows,
                             .cols = weight.cols,
                             .stride = weight.cols,
                             .bytes = true,
                             .box_rows = static_cast<uint32_t>(p.plan.tile_rows())};
    if (plain && !make_tensor_map(bytes, &p.parts[i].map)) return Status::not_supported;
  }
  p.plan.clusters = first;
  return Status::ok;
}

}  // namespace

bool supports_codebook_gemm(const CodebookWeight& weight) noexcept {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.level_scale > 0 &&
         (!weight.outlier_row_begin || weight.fits_tiles) && current_device().compute_capability == 90;
}

bool supports_joint_gemm(const CodebookWeight& weight, Precision precision) noexcept {
  return supports_codebook_gemm(weight) && is_plain(weight, precision) && !weight.channel_scales && weight.rank == 0;
}

size_t codebook_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept {
  return supports_codebook_gemm(weight) ? packed_x_bytes(weight.cols, tokens, current_device().multiprocessors) : 0;
}

Status codebook_gemm(const LinearArgs& args, const FusedProduct* products, int64_t count, Stream stream) noexcept {
  static_assert(GemmPlan::kMostSplits <= DeviceFacts::kMostBlocks);
  const CodebookWeight& first = products[0].weight;
  const bool plain = is_plain(first, args.precision);
  int64_t rows[kMaxFusedProducts];
  bool outliers = false;
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = products[i].weight.rows;
    outliers |= products[i].weight.outlier_row_begin != nullptr;
  }
  Parameters p{.tokens = args.tokens,
               .plan = plan_gemm({rows, static_cast<size_t>(count)}, first.cols, args.tokens, parts_of(first, args),
                                 plain, current_device().clusters),
               .count = count};
  if (const Status status = set_parts(products, plain, p); status != Status::ok) return status;
  p.x = place_packed_x(p.plan, outliers, args.workspace);
  if (const Status status = pack_x(args, first, p.plan, p.x, stream); status != Status::ok) return status;
  const bool two_levels = args.precision == Precision::exact && !first.levels_fit_half;
  switch (p.plan.columns) {
    case 8:
      return launch_any<8>(p, plain, two_levels, stream);
    case 16:
      return launch_any<16>(p, plain, two_levels, stream);
    case 32:
      return launch_any<32>(p, plain, two_levels, stream);
    case 64:
      return launch_any<64>(p, plain, two_levels, stream);
    default:
      return launch_any<128>(p, plain, two_levels, stream);
  }
}

}  // namespace hxq::cuda
