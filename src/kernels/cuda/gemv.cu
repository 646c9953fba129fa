// The codebook GEMV. A block of 16 warps owns adjacent rows. Each thread keeps its columns of x in registers and copies
// the bytes of its next rows to slots of its own in shared memory, which nobody else reads: nothing waits for other
// warps until a round of rows is done. A multiprocessor holds two blocks: that of the next kernel fills its table and
// its slots while this one still works, so that memory is read without a pause from matrix to matrix.
//
// What happens between the end of a kernel and the end of the next decides the time of small matrices: the code there
// is short, and its instructions are fetched before.

#include <algorithm>
#include <atomic>

#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/gemv_rows.cuh"

namespace hxq::cuda {
namespace {

using namespace gemv;

/// One thread's part of the products: its columns do not change. `kPlain`: rows and x are aligned, and x is taken as it
/// is; otherwise anything goes, and bytes are read when they are needed.
template <int kUnits, bool kPlain>
class Worker {
 public:
  static constexpr int kRows = GemvPlan::rows_at_once(kUnits);  ///< of a step
  static constexpr int kAhead = kHalves * kRows;                ///< rows whose bytes are on their way

  __device__ Worker(const GemvParameters& p, const CodebookWeight& weight, const BlockRows& rows)
      : input_(p.input),
        plan_(p.plan),
        weight_(weight),
        row_slots_(p.plan.row_slots()),
        block_rows_(rows.count),
        cols_(static_cast<int>(weight_.cols)),
        indices_(static_cast<const unsigned char*>(weight_.indices) + rows.first * weight_.cols) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) col_[u] = plan_.unit_of(static_cast<int>(threadIdx.x), u) * GemvPlan::kUnitCols;
    const int slot = plan_.slot_of(static_cast<int>(threadIdx.x));
    const int slot_of_warp = plan_.slot_of(static_cast<int>(threadIdx.x / 32 * 32));
    rows_ = slot < row_slots_ && col_[0] < cols_ ? rows.count - slot : kNone;
    warp_rows_ = slot_of_warp < row_slots_ ? rows.count - slot_of_warp : kNone;
    ahead_ = static_cast<uint32_t>(slot * cols_ + col_[0]);
  }

  __device__ int step() const { return kRows * row_slots_; }

  /// Asks for the bytes of the first rows that precede those which `multiply` asks for. Slots behind the row's end, for
  /// which nothing is asked, get bytes that have a level.
  __device__ void start() {
    if constexpr (kPlain) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (col_[u] < cols_) continue;
#pragma unroll 1
        for (int i = u; i < kHalves * kHalfSlots; i += kUnits) {
          const Half half(i / kHalfSlots);
          *reinterpret_cast<uint4*>(dynamic_shared + half.first + i % kHalfSlots * half.stride) =
              make_uint4(0, 0, 0, 0);
        }
      }
    }
    const Half half(kHalves - 1);
#pragma unroll 1
    for (int i = 0; i < kAhead - kRows; ++i) fetch(i * row_slots_, half.first + i * kUnits * half.stride, half.stride);
  }

  /// Brings the thread's part of x, and leaves in `shared` the sums over x that rows need beside their weights.
  __device__ void load_x(bool with_low_rank, GemvShared& shared) {
    float squares = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if constexpr (kPlain) {
        load_whole_run(input_.x.data, input_.x.dtype, col_[u], col_[u] < cols_, x_[u]);
        if (input_.norm_weight) {
#pragma unroll
          for (int i = 0; i < 16; i += 4) {
            if (col_[u] >= cols_) break;
            const float4 w = *reinterpret_cast<const float4*>(input_.norm_weight + col_[u] + i);
            const float weight[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              squares = fmaf(x_[u][i + j], x_[u][i + j], squares);
              x_[u][i + j] *= weight[j];
            }
          }
        }
      } else {
        load_run(input_.x.data, input_.x.dtype, col_[u], cols_ - col_[u], x_[u]);
        if (!weight_.channel_scales) continue;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          if (col_[u] + i < cols_) x_[u][i] = __fdividef(x_[u][i], weight_.channel_scales[col_[u] + i]);
        }
      }
    }
    const int group = static_cast<int>(threadIdx.x) >> plan_.lanes_log2;
    if (static_cast<int>(threadIdx.x / 32 * 32) >> plan_.lanes_log2 >= plan_.groups) return;  // it has what another has
    const bool writes = group < plan_.groups && (threadIdx.x & static_cast<unsigned>(plan_.lanes() - 1)) == 0;
    if (input_.norm_weight) {
      squares = sum_lanes(squares, plan_.lanes());
      if (writes) shared.squares[group] = squares;
    }
    if (!with_low_rank) return;
#pragma unroll 1
    for (int n = 0; n < weight_.rank; ++n) {
      float product = 0;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const float* vt = weight_.low_rank_vt + n * cols_ + col_[u];
#pragma unroll
        for (int i = 0; i < 16; i += kPlain ? 4 : 1) {
          if (col_[u] + i >= cols_) break;
          if constexpr (kPlain) {
            const float4 v = *reinterpret_cast<const float4*>(vt + i);
            product = fmaf(v.x, x_[u][i], product);
            product = fmaf(v.y, x_[u][i + 1], product);
            product = fmaf(v.z, x_[u][i + 2], product);
            product = fmaf(v.w, x_[u][i + 3], product);
          } else {
            product = fmaf(vt[i], x_[u][i], product);
          }
        }
      }
      product = sum_lanes(product, plan_.lanes());
      if (writes) shared.low_rank[n][group] = product;
    }
  }

  /// Products of the rows of a step, which begins at row `begin` of the block, with the thread's part of x, summed over
  /// the lanes of a group. `partial`: of row 0. What rows outside of [0, end) give stays in the warp. Asks for bytes of
  /// later rows.
  __device__ void multiply(int begin, int end, float* partial) {
    const Half half(half_);
    uint32_t slot = half.first;
    float sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = 0;
      if (begin + r * row_slots_ < warp_rows_) {  // so small matrices take no more than they have
        uint4 bytes[kUnits];
        take(begin + r * row_slots_, slot, half.stride, bytes);
        sum[r] = multiply_row(bytes);
      }
      fetch(begin + (r + kAhead) * row_slots_, slot, half.stride);
      slot += kUnits * half.stride;
    }
    if constexpr (kHalves == 2) half_ ^= 1;
    const auto thread = static_cast<int>(threadIdx.x);
    const int lanes = plan_.lanes();
    const float total = sum_lanes_each(sum, lanes);
    const int own_slot = plan_.slot_of(thread);
    const int row = begin + own_slot + (thread & (lanes - 1)) / (lanes / kRows) * row_slots_;
    if ((thread & (lanes / kRows - 1)) == 0 && own_slot < row_slots_ && row >= 0 && row < end) {
      partial[row * plan_.groups + plan_.group_of(thread)] = total;
    }
  }

 private:
  /// Where the thread's slots of a half lie: the first in the gaps of the table, the second behind everything else.
  struct Half {
    uint32_t first, stride;
    __device__ explicit Half(int half) {
      const uint32_t piece = threadIdx.x / 8, in_piece = threadIdx.x % 8 * 16;
      first = half == 0 ? piece * SpreadTable::kEntryBytes + SpreadTable::kGap + in_piece
                        : static_cast<uint32_t>(sizeof(GemvShared)) + threadIdx.x * 16;
      stride = half == 0 ? kThreads / 8 * SpreadTable::kEntryBytes : 16 * kThreads;
    }
  };

  /// The thread's bytes of its row of those from `first` on; they are asked for in turn.
  __device__ void fetch(int first, uint32_t slot, uint32_t stride) {
    if constexpr (kPlain) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (first < rows_ && (u == 0 || col_[u] < cols_)) {
          copy_async<16>(dynamic_shared + slot + u * stride,
                         indices_ + (ahead_ + static_cast<uint32_t>(col_[u] - col_[0])));
        }
      }
      end_copy_group();
      ahead_ += static_cast<uint32_t>(row_slots_ * cols_);
    }
  }

  /// They are there, or any bytes if there is no such row: then nothing is made of them. Behind the row's end x is
  /// zero.
  __device__ void take(int first, uint32_t slot, uint32_t stride, uint4 (&bytes)[kUnits]) const {
    if constexpr (kPlain) wait_for_copies<kAhead - 1>();
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if constexpr (kPlain) {
        bytes[u] = *reinterpret_cast<const uint4*>(dynamic_shared + slot + u * stride);
      } else {
        const int row = min(max(first + plan_.slot_of(static_cast<int>(threadIdx.x)), 0), block_rows_ - 1);
        bytes[u] =
            load_bytes_unaligned(indices_ + row * cols_ + min(col_[u], cols_ - 1), indices_ + block_rows_ * cols_ - 1);
      }
    }
  }

  __device__ float multiply_row(const uint4 (&bytes)[kUnits]) const {
    float sum[2] = {};
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const uint32_t words[4] = {bytes[u].x, bytes[u].y, bytes[u].z, bytes[u].w};
#pragma unroll
      for (int i = 0; i < 16; ++i) sum[i % 2] = fmaf(table_.look_up(words[i / 4], i % 4), x_[u][i], sum[i % 2]);
    }
    return sum[0] + sum[1];
  }

  static constexpr int kNone = -(1 << 30);

  const FusedInput& input_;
  const GemvPlan& plan_;
  const CodebookWeight& weight_;
  const SpreadTable table_;
  const int row_slots_, block_rows_, cols_;
  const unsigned char* const indices_;
  /// The first row of those of slot 0 for which the thread, or all of its warp, has no row of its own any more.
  int rows_, warp_rows_;
  uint32_t ahead_;  ///< where the thread's bytes of its next row that is asked for are
  int half_ = 0;
  int col_[kUnits];
  float x_[kUnits][16] = {};
};

template <int kUnits, bool kPlain, int kRegisters>
__global__ void __maxnreg__(kRegisters) gemv_kernel(const __grid_constant__ GemvParameters p) {
  auto& shared = *reinterpret_cast<GemvShared*>(dynamic_shared);
  int number = 0;
  while (number + 1 < p.parts && static_cast<int>(blockIdx.x) >= p.part[number + 1].first_block) ++number;
  const FusedProduct& product = p.part[number].product;
  const CodebookWeight& weight = product.weight;
  BlockRows rows(p.part[number]);
  Worker<kUnits, kPlain> worker(p, weight, rows);
  const TableFill<kThreads> fill(weight.codebook, weight.k);
  worker.start();
  rows.find_outliers(weight);
  fetch_outliers(weight, rows, shared);
  fill.store<SpreadTable>(0, [](float level) { return __float_as_uint(level); });
  __syncthreads();  // the table is there

  const int step = worker.step();
  // The first step multiplies nothing: it brings the loop's instructions, so that they are there when x is.
  int begin = 0, end = 0;
#pragma unroll 1
  for (int row = -step; row < rows.count; row += step) {
    if (row + p.last_rows >= rows.count) let_successors_begin();
    worker.multiply(row, end, shared.partial - begin * p.plan.groups);
    if (row < 0) {
      wait_for_predecessors();
      worker.load_x(weight.rank > 0 && !product.low_rank_product, shared);
      multiply_outliers<kPlain ? worker.kRows : 0>(p.input, weight, rows, shared);
      end = min(p.round, rows.count);
    } else if (row + step >= end) {
      __syncthreads();
      finish_rows(p, product, shared, rows, begin, end);
      begin = end;
      end = min(begin + p.round, rows.count);
      if (begin < end) __syncthreads();
    }
  }
}

/// Of dynamic shared memory of a block.
size_t shared_bytes(bool few_registers) {
  const size_t least = sizeof(GemvShared) + (halves(current_device().compute_capability) - 1) * kHalfBytes;
  return few_registers ? least + 2048 : least;
}

template <int kUnits, int kRegisters>
Status launch_units(const GemvParameters& p, int blocks, bool plain, Stream stream) {
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                          .block = dim3(kThreads),
                          .shared_bytes = shared_bytes(kRegisters == kFewRegisters)};
  return plain ? launch(gemv_kernel<kUnits, true, kRegisters>, shape, stream, p)
               : launch(gemv_kernel<kUnits, false, kRegisters>, shape, stream, p);
}

/// Rows and x are read 16 bytes at a time.
bool is_plain(const FusedInput& input, const CodebookWeight& weight) {
  return weight.cols % 16 == 0 && !weight.channel_scales && is_aligned(weight.indices, 16) &&
         is_aligned(weight.low_rank_vt, 16) && is_aligned(input.x.data, 16) && is_aligned(input.norm_weight, 16);
}

}  // namespace

bool takes_few_registers() noexcept {
  static std::atomic<unsigned> launches = 0;
  return launches.fetch_add(1, std::memory_order_relaxed) % 2 != 0;
}

bool supports_codebook_gemv(const CodebookWeight& weight) noexcept {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.cols <= kGemvMaxCols;
}

bool supports_fused_linear(const FusedInput& input, const CodebookWeight& weight) noexcept {
  return supports_codebook_gemv(weight) && weight.rows > 0 && weight.rank <= kGemvMaxRank && is_plain(input, weight) &&
         is_activation(input.x.dtype);
}

Status fused_linear(const FusedInput& input, const FusedProduct* products, int64_t count, Stream stream) noexcept {
  bool valid = count >= 1 && count <= kMaxFusedProducts;
  for (int64_t i = 0; valid && i < count; ++i) {
    valid = supports_fused_linear(input, products[i].weight) && is_activation(products[i].y.dtype) &&
            products[i].weight.cols == products[0].weight.cols;
  }
  if (!valid) return Status::invalid_value;
  return codebook_gemv(input, {products, static_cast<size_t>(count)}, stream);
}

Status codebook_gemv(const FusedInput& input, std::span<const FusedProduct> products, Stream stream) noexcept {
  GemvParameters p{.input = input, .parts = static_cast<int>(products.size())};
  int64_t rows[kMaxFusedProducts], blocks[kMaxFusedProducts], all_rows = 0;
  bool plain = true;
  for (int i = 0; i < p.parts; ++i) {
    rows[i] = products[i].weight.rows;
    all_rows += rows[i];
    plain = plain && is_plain(input, products[i].weight);
  }
  p.plan = plan_gemv(all_rows, products[0].weight.cols, current_device().multiprocessors);
  p.round = kPartials / p.plan.groups / p.plan.turn_rows() * p.plan.turn_rows();
  p.last_rows = static_cast<int>(std::max<int64_t>(p.plan.turn_rows(), kLastBytes / products[0].weight.cols));
  share_blocks({rows, products.size()}, p.plan.blocks, blocks);
  int all_blocks = 0;
  for (int i = 0; i < p.parts; ++i) {
    p.part[i] = {.product = products[i], .share = {rows[i], blocks[i]}, .first_block = all_blocks};
    all_blocks += static_cast<int>(blocks[i]);
  }
  switch (p.plan.units) {
    case 1:
      return takes_few_registers() ? launch_units<1, kFewRegisters>(p, all_blocks, plain, stream)
                                   : launch_units<1, kManyRegisters>(p, all_blocks, plain, stream);
    case 2:
      return launch_units<2, 128>(p, all_blocks, plain, stream);
    case 4:
      return launch_units<4, 128>(p, all_blocks, plain, stream);
    default:
      return Status::invalid_value;
  }
}

}  // namespace hxq::cuda
