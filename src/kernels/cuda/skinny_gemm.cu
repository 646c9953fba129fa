// The codebook product for few tokens by Hopper's tensor cores, in TF32: x needs no packing, as TF32 has the range of
// float, and levels that are binary16 numbers fit it. Weights are the left operand, looked up from their bytes straight
// into registers; x is the right one, and lies in shared memory as lanes take it. As in the GEMV a thread copies the
// bytes that it multiplies itself to slots of its own, and waits for nobody until a round of tiles is done
// (skinny_gemm_plan.h).
//
// A block fills a multiprocessor, so whatever comes before its first product counts: instructions that run once are
// fetched at some 70 cycles for each eight, and everything here is loops of few instructions.

#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/skinny_gemm.cuh"
#include "kernels/cuda/skinny_gemm_sums.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda {
namespace {

using namespace skinny;

/// Where a thread's 16 bytes of the upper row of an item lie, and how far behind them those of the lower one.
struct Slot {
  uint32_t at, stride;

  __device__ explicit Slot(int item) {
    const uint32_t thread = threadIdx.x * 16;
    if (item < 2) {
      stride = 2 * layout::kArrayBytes;
      at = layout::kTable + SpreadTable::kGap + thread / 128 * SpreadTable::kEntryBytes + thread % 128 +
           static_cast<uint32_t>(item) * 2 * stride;
    } else {
      stride = layout::kArrayBytes;
      at = (item == 2 ? layout::kLowerSlots : layout::kUpperSlots + static_cast<uint32_t>(item - 3) * 2 * stride) +
           thread;
    }
  }
};

/// A thread's part of the products.
template <int kTokenTiles, bool kTwoParts>
class Multiplier {
 public:
  static constexpr int kParts = kTwoParts ? 2 : 1;

  __device__ Multiplier(const Parameters& p, const CodebookWeight& weight, const ClusterRows& rows)
      : p_(p),
        lane_base_(WideTable::lane_base(dynamic_shared + layout::kTable)),
        cols_(static_cast<int>(weight.cols)),
        units_(
            min(p.plan.units, (cols_ + SkinnyPlan::kUnitCols - 1) / SkinnyPlan::kUnitCols - rows.block * p.plan.units)),
        first_unit_(p.plan.col_group_of(warp())),
        block_col_(rows.block * p.plan.units * SkinnyPlan::kUnitCols + SkinnyPlan::lane_col(lane())),
        tile_rows_(p.plan.row_groups * SkinnyPlan::kTileRows),
        rows_(rows.count - p.plan.row_group_of(warp()) * SkinnyPlan::kTileRows),
        ahead_unit_(first_unit_),
        ahead_rows_(first_unit_ < units_ ? rows_ : 0),
        ahead_(static_cast<const unsigned char*>(weight.indices) +
               (rows.first + p.plan.row_group_of(warp()) * SkinnyPlan::kTileRows + SkinnyPlan::lane_row(lane())) *
                   weight.cols +
               block_col_) {}

  /// Asks for the bytes of the first items.
  __device__ void start() {
#pragma unroll 1
    for (int i = 0; i < layout::kItems; ++i) fetch(Slot(i));
  }

  /// Brings the block's part of x, as TF32 in the places where lanes take it.
  __device__ void load_x() const {
#pragma unroll 1
    for (int i = warp(); i < units_ * kTokenTiles; i += SkinnyPlan::kWarps) {
      const int unit = i / kTokenTiles, token = first_token(p_) + i % kTokenTiles * SkinnyPlan::kTokens + lane() / 4;
      const int col = block_col_ + unit * SkinnyPlan::kUnitCols;
      float value[16];
      load_whole_run(p_.x.data, p_.x.dtype, static_cast<int64_t>(p_.x.stride) * token + col,
                     token < p_.tokens && col < cols_, value);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        uint4 high, low;
        split(value[4 * q], high.x, low.x);
        split(value[4 * q + 1], high.y, low.y);
        split(value[4 * q + 2], high.z, low.z);
        split(value[4 * q + 3], high.w, low.w);
        lane_x<kTwoParts>(i, 0, lane())[q * 32] = high;
        if constexpr (kTwoParts) lane_x<kTwoParts>(i, 1, lane())[q * 32] = low;
      }
    }
  }

  /// Multiplies the warp's next tile, its `tile`-th, and leaves the sums. A tile of -1 is none: it brings the
  /// instructions.
  __device__ void multiply(int tile, int in_round) {
    const bool real = tile >= 0;
    if (real && tile * tile_rows_ >= rows_) return;
    float sum[kTokenTiles][4] = {};
#pragma unroll 1
    for (int unit = first_unit_; unit < units_; unit += p_.plan.col_groups()) {
      Slot slot(item_);
      if (real) {
        wait_for_copies<layout::kItems - 1>();
      } else {
        slot.at = layout::kX, slot.stride = 0;  // nothing comes there yet
      }
      const uint4 upper = *reinterpret_cast<const uint4*>(dynamic_shared + slot.at);
      const uint4 lower = *reinterpret_cast<const uint4*>(dynamic_shared + slot.at + slot.stride);
      if (real) {
        fetch(slot);
        item_ = item_ + 1 == layout::kItems ? 0 : item_ + 1;
      }
      multiply_unit({upper.x, upper.y, upper.z, upper.w}, {lower.x, lower.y, lower.z, lower.w}, unit * kTokenTiles,
                    sum);
      if (!real) return;
    }
    float* to = shared_floats(layout::kTileSums) + lane() % 4 * 2 * SkinnyPlan::kSumPitch +
                SkinnyPlan::lane_row(lane()) +
                (in_round * SkinnyPlan::kWarps + warp()) * p_.plan.tokens() * SkinnyPlan::kSumPitch;
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[(n * SkinnyPlan::kTokens + i % 2) * SkinnyPlan::kSumPitch + i / 2 * 8] = sum[n][i];
      }
    }
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  __device__ static void split(float value, uint32_t& high, uint32_t& low) {
    high = to_tf32(value);
    low = to_tf32(value - __uint_as_float(high));
  }

  /// Asks for the thread's bytes of the next item. Behind the end of a row or the rows there are none: slots keep what
  /// they have, which has levels, and x is zero or nothing is made of the sums.
  __device__ void fetch(Slot slot) {
    const int beside = ahead_unit_ * SkinnyPlan::kUnitCols;
    const int rows = block_col_ + beside < cols_ ? ahead_rows_ - SkinnyPlan::lane_row(lane()) : 0;
    const unsigned char* from = ahead_ + beside;
    if (rows > 0) copy_async<16>(dynamic_shared + slot.at, from);
    if (rows > 8) copy_async<16>(dynamic_shared + slot.at + slot.stride, from + int64_t{8} * cols_);
    end_copy_group();
    ahead_unit_ += p_.plan.col_groups();
    if (ahead_unit_ < units_) return;
    ahead_unit_ = first_unit_;
    ahead_rows_ -= tile_rows_;
    ahead_ += int64_t{tile_rows_} * cols_;
  }

  __device__ void multiply_unit(const uint32_t (&upper)[4], const uint32_t (&lower)[4], int unit_tile,
                                float (&sum)[kTokenTiles][4]) const {
    // Tensor cores cut off what does not fit in a sum: those of many units, and of the parts of x, are made in float.
    float part[kTokenTiles][kParts][4] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      uint4 x[kTokenTiles][kParts];
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < kParts; ++i) x[n][i] = lane_x<kTwoParts>(unit_tile + n, i, lane())[q * 32];
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t a[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          a[k] = WideTable::look_up(lane_base_, k % 2 == 0 ? upper[q] : lower[q], j * 2 + k / 2);
        }
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
          for (int i = 0; i < kParts; ++i) {
            multiply_add_tf32(part[n][i], a, j == 0 ? x[n][i].x : x[n][i].z, j == 0 ? x[n][i].y : x[n][i].w);
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] += kTwoParts ? part[n][0][i] + part[n][kParts - 1][i] : part[n][0][i];
    }
  }

  const Parameters& p_;
  const uint32_t lane_base_;
  const int cols_, units_, first_unit_;
  const int block_col_;  ///< the lane's first column of the block's part
  const int tile_rows_;  ///< from a tile of the warp to its next
  const int rows_;       ///< from the warp's first tile on
  int item_ = 0;
  // What is asked for next.
  int ahead_unit_, ahead_rows_;
  const unsigned char* ahead_;
};

template <int kTokenTiles, bool kTwoParts>
__global__ void __launch_bounds__(kThreads, 1) skinny_gemm_kernel(const __grid_constant__ Parameters p) {
#if __CUDA_ARCH__ >= 900
  // Lookups take the lower 16 bits of an address from the index: the table begins where they are zero.
  if ((hopper::shared_address(dynamic_shared + layout::kTable) % SpreadTable::kBytes) != 0) __trap();
  const int cluster = static_cast<int>(blockIdx.x) / p.plan.cluster;
  int number = 0;
  while (number + 1 < p.parts && cluster >= p.part[number + 1].first_cluster) ++number;
  const FusedProduct& product = p.part[number].product;
  const CodebookWeight& weight = product.weight;
  const ClusterRows rows(p.part[number], cluster);
  const TableFill<kThreads> fill(weight.codebook, weight.k);
  Multiplier<kTokenTiles, kTwoParts> multiplier(p, weight, rows);
  multiplier.start();
  const Sums<kTokenTiles, kTwoParts> sums(p, product, rows);
  sums.prefetch();
  fill.template store<WideTable>(WideTable::lane_base(dynamic_shared + layout::kTable),
                                 [](float level) { return to_tf32(level); });
  let_successors_begin();
  hopper::cluster_barrier();  // the tables are there, and all blocks run
  int round = 0, in_round = 0, pass = 0;
#pragma unroll 1
  for (int tile = -1; round * p.plan.round_rows() < rows.count; ++tile) {
    multiplier.multiply(tile, in_round);
    if (tile < 0) {
      __syncthreads();  // nobody reads any more what lies where x comes
      wait_for_predecessors();
      multiplier.load_x();
      __syncthreads();  // x is there
      continue;
    }
    if (++in_round < p.plan.round_tiles) continue;
    const bool last = (round + 1) * p.plan.round_rows() >= rows.count;
    __syncthreads();
    sums.add_up_round(round, pass);
    in_round = 0;
    ++round;
    if (!last && round != (pass + 1) * p.plan.pass_rounds) {
      __syncthreads();
      continue;
    }
    hopper::cluster_barrier();
    sums.write(pass++);
    if (last) break;
    hopper::cluster_barrier();
  }
#else
  __trap();  // built for another GPU
#endif
}

template <int kTokenTiles, bool kTwoParts>
Status launch_kernel(const Parameters& p, int64_t clusters, Stream stream) {
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(clusters * p.plan.cluster), static_cast<unsigned>(p.plan.token_groups)),
      .block = dim3(kThreads),
      .shared_bytes = layout::kBytes,
      .cluster = p.plan.cluster};
  return launch(skinny_gemm_kernel<kTokenTiles, kTwoParts>, shape, stream, p);
}

}  // namespace

bool supports_skinny_gemm(const CodebookWeight& weight, const LinearArgs& args) noexcept {
  return current_device().compute_capability == 90 && args.tokens > 1 &&
         args.tokens <= most_skinny_tokens(weight, parts_of(weight, args)) && takes_whole_units(weight, args) &&
         fits_skinny_gemm(weight.cols, args.tokens, parts_of(weight, args), current_device().clusters);
}

Status skinny_gemm(const LinearArgs& args, std::span<const FusedProduct> products, Stream stream) noexcept {
  Parameters p{.x = args.x, .tokens = static_cast<int>(args.tokens), .parts = static_cast<int>(products.size())};
  const CodebookWeight& first = products[0].weight;
  const int parts = parts_of(first, args);
  p.plan = plan_skinny_gemm(all_rows_of(products), first.cols, args.tokens, parts, current_device().clusters);
  const auto [clusters, most_rows] = share_clusters(products, p.plan.clusters, p.part);
  p.plan.set_pass(most_rows);
  if (p.plan.token_tiles == 1) {
    return parts == 2 ? launch_kernel<1, true>(p, clusters, stream) : launch_kernel<1, false>(p, clusters, stream);
  }
  return parts == 2 ? launch_kernel<2, true>(p, clusters, stream) : launch_kernel<2, false>(p, clusters, stream);
}

}  // namespace hxq::cuda
