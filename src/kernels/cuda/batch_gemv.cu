// The codebook GEMV of a few tokens. As in the GEMV a thread keeps its columns of x in registers, copies the bytes of
// its next rows to slots of its own in shared memory, and waits for nobody until a round of tiles is done; two kinds of
// blocks take turns on a multiprocessor. What differs is that tensor cores multiply, in binary16: levels are their left
// operand, looked up from the bytes straight into registers, and x is the right one, each token divided by a power of
// two that each warp chooses for its own columns. A row is shared by a cluster, so that registers can hold x.
//
// Warps wait for each other as little as can be: they leave the sums of their tiles of a round in one of two places,
// and a few of them add up a round while all go on to the next.

#include <algorithm>

#include "kernels/cuda/batch_gemv.cuh"
#include "kernels/cuda/batch_gemv_sums.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda {
namespace {

using namespace batch;

/// Of a block: more than half of what a multiprocessor has, and what fits beside that.
constexpr size_t kMoreThanHalf = 114 * 1024, kMostShared = 112 * 1024;
static_assert(sizeof(Memory) <= kMostShared && kThreads == GemvPlan::kThreads);

/// A thread's part of the products. `kParts`: numbers for an element of x. What follows from the thread's number is
/// worked out where it is needed: one kind has no register for it.
template <int kParts>
class Multiplier {
  using Plan = BatchGemvPlan;
  static constexpr int kUnits = Plan::warp_units(kParts);

 public:
  __device__ Multiplier(const Parameters& p, const CodebookWeight& weight, const ClusterRows& rows)
      : p_(p),
        weight_(weight),
        rows_(rows.count),
        indices_(static_cast<const unsigned char*>(weight_.indices) + rows.first * weight_.cols) {}

  /// Asks for the bytes of the first items.
  __device__ void start() const {
#pragma unroll 1
    for (int i = 0; i < Memory::kItems; ++i) fetch(i, i / kUnits * p_.plan.round_rows(), i % kUnits);
  }

  /// Brings the thread's part of x; nothing, before it is there, but the instructions.
  __device__ void load_x(bool is_there) {
    const int token = lane() / 4, cols = static_cast<int>(weight_.cols);
    float value[kUnits][16], largest = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int col = first_col(u);
      load_whole_run(p_.x.data, p_.x.dtype, p_.x.stride * token + col, is_there && token < p_.tokens && col < cols,
                     value[u]);
#pragma unroll
      for (int i = 0; i < 16; ++i) largest = fmaxf(largest, fabsf(value[u][i]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float scale = scale_for(largest), inverse = inverse_of_scale(scale);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        uint32_t parts[kParts];
        split(value[u][2 * i] * inverse, value[u][2 * i + 1] * inverse, parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part) x_[u][part][i] = parts[part];
      }
    }
    scale_ = scale;
    item_ = is_there ? 0 : Memory::kItems;
  }

  /// Multiplies the warp's tile of a round, and leaves the sums. A round of -1 is none: it brings the instructions.
  __device__ void multiply(int round, const Sums& sums) {
    const int round_row = round * p_.plan.round_rows();
    const bool real = round >= 0;
    if (round_row + p_.plan.row_group_of(warp()) * Plan::kTileRows >= rows_) {
      sums.wait_for_room(round);  // nobody may leave a round before the last but one has been taken
      return;
    }
    float sum[kParts][4] = {};  // of each part, as tensor cores cut off what does not fit in a sum
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (real) wait_for_copies<Memory::kItems - 1>();
      const uint4 upper = *upper_slot(item_), lower = *lower_slot(item_);
      if (real) {
        constexpr int kAhead = Memory::kItems;
        fetch(item_, round_row + (u + kAhead) / kUnits * p_.plan.round_rows(), (u + kAhead) % kUnits);
        item_ = item_ + 1 == Memory::kItems ? 0 : item_ + 1;
      }
      if (unit(u) < p_.plan.units) {
        multiply_unit(u, {upper.x, upper.y, upper.z, upper.w}, {lower.x, lower.y, lower.z, lower.w}, sum);
      }
    }
    sums.wait_for_room(round);
    const TileSums to(round & 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float both = kParts == 2 ? sum[0][i] + sum[kParts - 1][i] : sum[0][i];
      const int token = lane() % 4 * 2 + i % 2;
      to.at(warp(), token, Plan::lane_row(lane()) + i / 2 * 8) = both * __shfl_sync(kAllLanes, scale_, token * 4);
    }
  }

 private:
  __device__ static int warp() { return static_cast<int>(thread_of_block() / 32); }
  __device__ static int lane() { return static_cast<int>(thread_of_block() % 32); }

  /// The number of the warp's unit `u` among those of the block, of which there may be fewer.
  __device__ int unit(int u) const { return p_.plan.col_group_of(warp()) + u * p_.plan.col_groups(); }
  /// The lane's first column of the warp's unit `u`; cols or more: there is none.
  __device__ int first_col(int u) const {
    if (unit(u) >= p_.plan.units) return static_cast<int>(weight_.cols);
    return (static_cast<int>(hopper::block_in_cluster()) * p_.plan.units + unit(u)) * Plan::kUnitCols +
           Plan::lane_col(lane());
  }

  __device__ static uint4* upper_slot(int item) {
    const uint32_t thread = thread_of_block();
    return reinterpret_cast<uint4*>(dynamic_shared + static_cast<uint32_t>(item) * Memory::kUpperStride +
                                    SpreadTable::kGap + thread / 8 * SpreadTable::kEntryBytes + thread % 8 * 16);
  }
  __device__ static uint4* lower_slot(int item) { return &memory().lower[item][thread_of_block()]; }

  /// Asks for the thread's bytes of the warp's unit `u` of a round's tile. Behind the end of a row or the rows there
  /// are none: slots keep what they have, which has levels, and x is zero or nothing is made of the sums.
  __device__ void fetch(int item, int round_row, int u) const {
    const int row = round_row + p_.plan.row_group_of(warp()) * Plan::kTileRows + Plan::lane_row(lane());
    const int col = first_col(u), cols = static_cast<int>(weight_.cols);
    const unsigned char* from =
        indices_ + (static_cast<uint32_t>(row) * static_cast<uint32_t>(cols) + static_cast<uint32_t>(col));
    if (col < cols && row < rows_) copy_async<16>(upper_slot(item), from);
    if (col < cols && row + 8 < rows_) copy_async<16>(lower_slot(item), from + 8 * cols);
    end_copy_group();
  }

  /// Two levels, of bytes `byte` and `byte` + 1.
  __device__ uint32_t look_up_pair(uint32_t word, int byte) const {
    return __byte_perm(table_.look_up_word(word, byte), table_.look_up_word(word, byte + 1), 0x5410);
  }

  __device__ void multiply_unit(int u, const uint32_t (&upper)[4], const uint32_t (&lower)[4],
                                float (&sum)[kParts][4]) const {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const uint32_t a[4] = {look_up_pair(upper[q], 0), look_up_pair(lower[q], 0), look_up_pair(upper[q], 2),
                             look_up_pair(lower[q], 2)};
#pragma unroll
      for (int i = 0; i < kParts; ++i) multiply_add(sum[i], a, x_[u][i][2 * q], x_[u][i][2 * q + 1]);
    }
  }

  const Parameters& p_;
  const CodebookWeight& weight_;
  const SpreadTable table_;
  const int rows_;  ///< of the cluster
  const unsigned char* const indices_;
  int item_;  ///< that is multiplied next; before there is one kItems, where nothing comes but the warp's own sums
  uint32_t x_[kUnits][kParts][8];
  float scale_;  ///< of x
};

template <int kParts, int kRegisters>
__global__ void __maxnreg__(kRegisters) batch_gemv_kernel(const __grid_constant__ Parameters p) {
#if __CUDA_ARCH__ >= 900
  int number = 0;
  while (number + 1 < p.parts && hopper::cluster_number() >= p.part[number + 1].first_cluster) ++number;
  const ClusterPart& part = p.part[number];
  const CodebookWeight& weight = part.product.weight;
  const Sums sums(p, part);
  const int rows = sums.rows().count;
  const TableFill<kThreads> fill(weight.codebook, weight.k);
  Multiplier<kParts> multiplier(p, weight, sums.rows());
  multiplier.start();
  sums.init();
  const float to_tile = inverse_of_scale(weight.level_scale);
  fill.template store<SpreadTable>(
      0, [&](float level) { return uint32_t{__half_as_ushort(__float2half_rn(level * to_tile))}; });
  __syncthreads();  // the table and the barriers are there
  hopper::arrive_at_cluster();
  if (p.last_rows >= rows) let_successors_begin();

  // Before the first round, while x is not there, everything runs once without it: that brings the instructions.
  int round = -1, pass = 0;
#pragma unroll 1
  while (true) {
    asm volatile("" : "+r"(round));  // else the compiler would make code of its own for this
    if (round < 0 || (round > 0 && round == pass * p.plan.pass_rounds)) sums.begin_pass(pass);
    if (round <= 0) {
      if (round == 0) wait_for_predecessors();
      multiplier.load_x(round == 0);
      if (round == 0) hopper::wait_for_cluster();  // all its blocks run
    }
    if (round * p.plan.round_rows() + p.last_rows >= rows) let_successors_begin();
    multiplier.multiply(round, sums);
    if (round >= 0) sums.leave(round);
    const bool ends =
        round >= 0 && ((round + 1) * p.plan.round_rows() >= rows || round + 1 == (pass + 1) * p.plan.pass_rounds);
#pragma unroll 1
    for (int i = max(round - 1, pass * p.plan.pass_rounds); i < round + ends; ++i) sums.add_up_round(i, pass);
    ++round;
    if (round > 0 && !ends) continue;
    if (round > 0) __syncthreads();
    sums.write(round > 0 ? pass : -1);
    if (round == 0) continue;
    ++pass;
    if (round * p.plan.round_rows() >= rows) break;
    hopper::cluster_barrier();  // all have read what others sent
  }
#else
  __trap();  // built for another GPU
#endif
}

template <int kParts>
Status launch_kind(const Parameters& p, int64_t clusters, Stream stream) {
  const bool few = takes_few_registers();
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(clusters * p.plan.cluster())),
                          .block = dim3(kThreads),
                          .shared_bytes = few ? kMoreThanHalf : sizeof(Memory),
                          .cluster = p.plan.cluster()};
  return few ? launch(batch_gemv_kernel<kParts, kFewRegisters>, shape, stream, p)
             : launch(batch_gemv_kernel<kParts, kManyRegisters>, shape, stream, p);
}

/// It costs less than the kernels for more tokens (measured on an H100), and no warps are idle for want of columns.
bool is_best(const CodebookWeight& weight, int parts) {
  const int64_t weights = weight.rows * weight.cols;
  if (weight.cols <= 128 || weights < int64_t{1} << 20) return false;
  return parts == 1 ? weight.cols <= 4096 : weights <= int64_t{16} << 20;
}

}  // namespace

bool supports_batch_gemv(const CodebookWeight& weight, const LinearArgs& args) noexcept {
  const int parts = parts_of(weight, args);
  return current_device().compute_capability == 90 && args.tokens > 1 && args.tokens <= BatchGemvPlan::kTokens &&
         is_best(weight, parts) && fits_batch_gemv(weight.cols, parts, current_device().clusters) &&
         takes_whole_units(weight, args) && weight.level_scale > 0;
}

Status batch_gemv(const LinearArgs& args, std::span<const FusedProduct> products, Stream stream) noexcept {
  Parameters p{.x = args.x, .tokens = static_cast<int>(args.tokens), .parts = static_cast<int>(products.size())};
  const CodebookWeight& first = products[0].weight;
  const int parts = parts_of(first, args);
  p.plan = plan_batch_gemv(all_rows_of(products), first.cols, parts, current_device().clusters);
  const auto [clusters, most_rows] = share_clusters(products, p.plan.clusters, p.part);
  p.plan.set_pass(most_rows);
  p.last_rows =
      static_cast<int>(std::max<int64_t>(p.plan.round_rows(), kLastBytes / (p.plan.units * BatchGemvPlan::kUnitCols)));
  return parts == 1 ? launch_kind<1>(p, clusters, stream) : launch_kind<2>(p, clusters, stream);
}

}  // namespace hxq::cuda
