// The codebook GEMV. A block of 16 warps owns adjacent rows. Each thread keeps its columns of x in registers and copies
// the bytes of its next rows to slots of its own in shared memory, which nobody else reads: nothing waits for other
// warps until a round of rows is done. A multiprocessor holds two blocks: that of the next kernel fills its table and
// its slots while this one still works, so that memory is read without a pause from matrix to matrix.
//
// What happens between the end of a kernel and the end of the next decides the time of small matrices: the code there
// is short, and its instructions are fetched before.

#include <algorithm>

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemv.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = GemvPlan::kWarps * 32;
constexpr int kPartials = 1024;       ///< sums of a row by one warp that wait for those of other warps
constexpr int kReadyOutliers = 1024;  ///< of a block, multiplied ahead
constexpr int kRowBegins = 512;       ///< rows of a block whose outliers are found in shared memory

/// One of the products, and the blocks that have it.
struct GemvPart {
  FusedProduct product;
  BlockShare share;
  int first_block;
};

struct GemvParameters {
  FusedInput input;
  GemvPlan plan;  ///< of all parts, but for their blocks
  int row_slots;  ///< of the plan
  int round;      ///< rows that a block finishes together, whole steps
  int parts;
  GemvPart part[kMaxFusedProducts];
};

/// What a block keeps in shared memory, before its slots.
struct GemvShared {
  alignas(1024) unsigned char table[SmallTable::kBytes];
  float partial[kPartials];
  uint32_t col[kReadyOutliers];                    ///< of the block's first outliers
  float product[kReadyOutliers];                   ///< their change of the weight, then that times x
  uint32_t row_begin[kRowBegins + 1];              ///< where the outliers of the block's first rows begin
  float squares[GemvPlan::kWarps];                 ///< of x, by the warps that share a row
  float low_rank[kGemvMaxRank][GemvPlan::kWarps];  ///< x times Vt, likewise
};

/// Bytes that are on their way, of all threads.
constexpr uint32_t slot_bytes(int compute_capability) {
  return compute_capability >= 90 && compute_capability < 120 ? 65536 : 32768;
}
#ifdef __CUDA_ARCH__
constexpr uint32_t kSlotBytes = slot_bytes(__CUDA_ARCH__ / 10);
#else
constexpr uint32_t kSlotBytes = slot_bytes(90);
#endif

/// What column `col` of the weight is multiplied with, but for the norm's common factor.
__device__ inline float input_at(const FusedInput& input, const CodebookWeight& weight, int64_t col) {
  float x = load_element(input.x.data, input.x.dtype, col);
  if (input.norm_weight) x *= input.norm_weight[col];
  return weight.channel_scales ? __fdividef(x, weight.channel_scales[col]) : x;
}

/// The rows of a block and their outliers.
struct BlockRows {
  int64_t first;
  int count;
  uint32_t first_outlier = 0, outliers = 0;

  __device__ explicit BlockRows(const GemvPart& part) {
    const int block = static_cast<int>(blockIdx.x) - part.first_block;
    first = part.share.begin(block);
    count = part.share.count(block);
  }

  __device__ void find_outliers(const CodebookWeight& weight) {
    if (!weight.outlier_row_begin) return;
    first_outlier = __ldg(weight.outlier_row_begin + first);
    outliers = __ldg(weight.outlier_row_begin + first + count) - first_outlier;
  }
};

/// Starts to bring what is stored of the block's first outliers.
__device__ inline void fetch_outliers(const CodebookWeight& weight, const BlockRows& rows, GemvShared& shared) {
  if (!weight.outlier_row_begin) return;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i <= min(rows.count, kRowBegins); i += kThreads) {
    copy_async<4>(shared.row_begin + i, weight.outlier_row_begin + rows.first + i);
  }
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < min(rows.outliers, uint32_t{kReadyOutliers}); i += kThreads) {
    copy_async<4>(shared.col + i, weight.outlier_col + rows.first_outlier + i);
    copy_async<4>(shared.product + i, weight.outlier_change + rows.first_outlier + i);
  }
  end_copy_group();
}

/// Multiplies them with x: each thread those that it fetched itself, before its last kLater groups of copies.
template <int kLater>
__device__ inline void multiply_outliers(const FusedInput& input, const CodebookWeight& weight, const BlockRows& rows,
                                         GemvShared& shared) {
  wait_for_copies<kLater>();
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < min(rows.outliers, uint32_t{kReadyOutliers}); i += kThreads) {
    shared.product[i] *= input_at(input, weight, shared.col[i]);
  }
}

/// The sum of what the warps that share a row left behind.
__device__ inline float sum_of_warps(const float* by_warp, int warps) {
  float sum = 0;
#pragma unroll 1
  for (int w = 0; w < warps; ++w) sum += by_warp[w];
  return sum;
}

/// What lane `lane` of `lanes` adds to a row of the block beside its codebook's weights.
__device__ inline float row_extras(const GemvParameters& p, const FusedProduct& product, const GemvShared& shared,
                                   const BlockRows& rows, int row, int lane, int lanes) {
  const CodebookWeight& weight = product.weight;
  float sum = 0;
  if (weight.outlier_row_begin) {
    const auto begin_of = [&](int i) {
      return (i <= kRowBegins ? shared.row_begin[i] : weight.outlier_row_begin[rows.first + i]) - rows.first_outlier;
    };
    const uint32_t end = begin_of(row + 1);
#pragma unroll 1
    for (uint32_t i = begin_of(row) + lane; i < end; i += lanes) {
      if (i < kReadyOutliers) {
        sum += shared.product[i];
      } else {
        const uint32_t at = rows.first_outlier + i;
        sum += weight.outlier_change[at] * input_at(p.input, weight, weight.outlier_col[at]);
      }
    }
  }
#pragma unroll 1
  for (int n = lane; n < weight.rank; n += lanes) {
    const float along =
        product.low_rank_product ? product.low_rank_product[n] : sum_of_warps(shared.low_rank[n], p.plan.warps());
    sum += weight.low_rank_u[(rows.first + row) * weight.rank + n] * along;
  }
  return sum;
}

/// Adds up what the warps left behind for rows [begin, end) of the block, and writes y.
__device__ inline void finish_rows(const GemvParameters& p, const FusedProduct& product, const GemvShared& shared,
                                   const BlockRows& rows, int begin, int end) {
  constexpr int kLanes = 4;  ///< that share a row
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warps = p.plan.warps();
  float factor = 1;
  if (p.input.norm_weight) {
    const float mean = __fdividef(sum_of_warps(shared.squares, warps), static_cast<float>(product.weight.cols));
    factor = rsqrtf(mean + p.input.eps);
  }
#pragma unroll 1
  for (int first = begin; first < end; first += kThreads / kLanes) {
    const int row = first + static_cast<int>(threadIdx.x) / kLanes;
    float sum = 0;
    if (row < end) {
      sum = row_extras(p, product, shared, rows, row, lane, kLanes);
#pragma unroll 1
      for (int w = lane; w < warps; w += kLanes) sum += shared.partial[(row - begin) * warps + w];
    }
    sum = factor * sum_lanes<kLanes>(sum);
    if (row < end && lane == 0) {
      const int64_t at = rows.first + row;
      if (product.bias) sum += product.bias[at];
      if (product.accumulate) sum += load_element(product.y.data, product.y.dtype, at);
      store_element(product.y.data, product.y.dtype, at, sum);
    }
  }
}

/// One thread's part of the products: its columns do not change. `kPlain`: rows and x are aligned, and x is taken as it
/// is; otherwise anything goes, and bytes are read when they are needed.
template <int kUnits, bool kPlain>
class Worker {
 public:
  static constexpr int kRows = GemvPlan::rows_at_once(kUnits);  ///< of a step
  static constexpr int kAhead = kSlotBytes / (16 * kThreads * kUnits);
  static_assert(kAhead % kRows == 0);

  __device__ Worker(const GemvParameters& p, const CodebookWeight& weight, const BlockRows& rows, unsigned char* slots)
      : input_(p.input),
        plan_(p.plan),
        weight_(weight),
        slots_(slots + threadIdx.x * 16),
        row_slots_(p.row_slots),
        slot_(plan_.slot_of(static_cast<int>(threadIdx.x))),
        first_of_warp_(plan_.slot_of(static_cast<int>(threadIdx.x / 32 * 32))),
        rows_(rows.count),
        cols_(static_cast<int>(weight_.cols)),
        indices_(static_cast<const unsigned char*>(weight_.indices) + rows.first * weight_.cols) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) col_[u] = plan_.unit_of(static_cast<int>(threadIdx.x), u) * GemvPlan::kUnitCols;
  }

  __device__ int step() const { return kRows * row_slots_; }
  /// Rows behind a step's first whose bytes are asked for once `multiply` is done with it.
  __device__ int ahead() const { return (kAhead + kRows) * row_slots_; }

  /// Asks for the bytes of the first rows that precede those which `multiply` asks for. Slots behind the row's end, for
  /// which nothing is asked, get bytes that have a level.
  __device__ void start() const {
    if constexpr (kPlain) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (col_[u] < cols_) continue;
#pragma unroll 1
        for (int i = 0; i < kAhead; ++i) {
          *reinterpret_cast<uint4*>(slots_ + (i * kUnits + u) * (16 * kThreads)) = make_uint4(0, 0, 0, 0);
        }
      }
    }
#pragma unroll 1
    for (int i = 0; i < kAhead - kRows; ++i) fetch(i * row_slots_, (i + kRows) % kAhead);
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
    const auto warp = static_cast<int>(threadIdx.x) / 32;
    if (warp >= plan_.warps()) return;  // it has what another has
    if (input_.norm_weight) {
      squares = sum_lanes(squares, plan_.lanes());
      if (threadIdx.x % 32 == 0) shared.squares[warp] = squares;
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
      if (threadIdx.x % 32 == 0) shared.low_rank[n][warp] = product;
    }
  }

  /// Products of the rows of a step, which begins at row `begin` of the block, with the thread's part of x, summed over
  /// the lanes of a row. `partial`: of row 0. What rows outside of [0, end) give stays in the warp. Asks for bytes of
  /// later rows.
  __device__ void multiply(int begin, int end, float* partial) {
    float sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = 0;
      if (begin + r * row_slots_ + first_of_warp_ < rows_) {  // so small matrices take no more than they have
        uint4 bytes[kUnits];
        take(begin + r * row_slots_, place_ + r, bytes);
        sum[r] = multiply_row(bytes);
      }
      fetch(begin + (r + kAhead) * row_slots_, place_ + r);
    }
    place_ = (place_ + kRows) % kAhead;
    const auto thread = static_cast<int>(threadIdx.x);
    const int row = begin + slot_;
    partial += plan_.warp_of(thread);
    if (plan_.lanes() == 32) {
      const float total = sum_lanes_each(sum);
      const int of = row + thread % 32 / (32 / kRows) * row_slots_;
      if (thread % (32 / kRows) == 0 && of >= 0 && of < end) partial[of * plan_.warps()] = total;
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float total = sum_lanes(sum[r], plan_.lanes());
        const int of = row + r * row_slots_;
        if ((thread & (plan_.lanes() - 1)) == 0 && of >= 0 && of < end) partial[of] = total;
      }
    }
  }

 private:
  /// The thread's bytes of its row of those from `first` on.
  __device__ void fetch(int first, int place) const {
    const int row = first + slot_;
    if constexpr (kPlain) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (row < rows_ && col_[u] < cols_) {
          copy_async<16>(slots_ + (place * kUnits + u) * (16 * kThreads),
                         indices_ + static_cast<uint32_t>(row * cols_ + col_[u]));
        }
      }
      end_copy_group();
    }
  }

  /// They are there, or any bytes if there is no such row: then nothing is made of them. Behind the row's end x is
  /// zero.
  __device__ void take(int first, int place, uint4 (&bytes)[kUnits]) const {
    if constexpr (kPlain) wait_for_copies<kAhead - 1>();
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if constexpr (kPlain) {
        bytes[u] = *reinterpret_cast<const uint4*>(slots_ + (place * kUnits + u) * (16 * kThreads));
      } else {
        const int row = min(max(first + slot_, 0), rows_ - 1);
        bytes[u] = load_bytes_unaligned(indices_ + row * cols_ + min(col_[u], cols_ - 1), indices_ + rows_ * cols_ - 1);
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

  const FusedInput& input_;
  const GemvPlan& plan_;
  const CodebookWeight& weight_;
  const SmallTable table_;
  unsigned char* const slots_;
  const int& row_slots_;
  const int slot_, first_of_warp_, rows_, cols_;
  const unsigned char* const indices_;
  int place_ = 0;  ///< of the step's first row
  int col_[kUnits];
  float x_[kUnits][16] = {};
};

template <int kUnits, bool kPlain>
__global__ void __launch_bounds__(kThreads, kUnits == 1 ? 2 : 1) gemv_kernel(const __grid_constant__ GemvParameters p) {
  auto& shared = *reinterpret_cast<GemvShared*>(dynamic_shared);
  int number = 0;
  while (number + 1 < p.parts && static_cast<int>(blockIdx.x) >= p.part[number + 1].first_block) ++number;
  const FusedProduct& product = p.part[number].product;
  const CodebookWeight& weight = product.weight;
  BlockRows rows(p.part[number]);
  Worker<kUnits, kPlain> worker(p, weight, rows, dynamic_shared + sizeof(GemvShared));
  const TableFill<kThreads> fill(weight.codebook, weight.k);
  worker.start();
  rows.find_outliers(weight);
  fetch_outliers(weight, rows, shared);
  fill.store();
  __syncthreads();  // the table is there

  const int step = worker.step();
  // The first step multiplies nothing: it brings the loop's instructions, so that they are there when x is.
  int begin = 0, end = 0;
#pragma unroll 1
  for (int row = -step; row < rows.count; row += step) {
    if (row + worker.ahead() >= rows.count) let_successors_begin();
    worker.multiply(row, end, shared.partial - begin * p.plan.warps());
    if (row < 0) {
      wait_for_predecessors();
      worker.load_x(weight.rank > 0 && !product.low_rank_product, shared);
      multiply_outliers<kPlain ? worker.kRows : 0>(p.input, weight, rows, shared);
      __syncthreads();  // what belongs to outliers and to all of x is there
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

/// More than half of a multiprocessor's shared memory, for GPUs where two blocks would fit otherwise.
size_t bytes_to_be_alone(int compute_capability) {
  if (compute_capability >= 90 && compute_capability < 120) return 118 * 1024;
  return compute_capability == 80 ? 84 * 1024 : 0;
}

template <int kUnits>
Status launch_units(const GemvParameters& p, int blocks, bool plain, Stream stream) {
  const int capability = current_device().compute_capability;
  LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                    .block = dim3(kThreads),
                    .shared_bytes = sizeof(GemvShared) + slot_bytes(capability)};
  // Where other multiprocessors are still busy, two blocks of a kernel come to lie on one, and half of the memory's
  // rate is lost: with much to read that costs more than an early start gains.
  constexpr int64_t kMuch = 24 * 1024;  ///< bytes of a block
  int64_t bytes = 0;
  for (int i = 0; i < p.parts; ++i) bytes += p.part[i].product.weight.rows * p.part[i].product.weight.cols;
  if (bytes >= kMuch * blocks) shape.shared_bytes = std::max(shape.shared_bytes, bytes_to_be_alone(capability));
  return plain ? launch(gemv_kernel<kUnits, true>, shape, stream, p)
               : launch(gemv_kernel<kUnits, false>, shape, stream, p);
}

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

/// Rows and x are read 16 bytes at a time.
bool is_plain(const FusedInput& input, const CodebookWeight& weight) {
  return weight.cols % 16 == 0 && !weight.channel_scales && is_aligned(weight.indices) &&
         is_aligned(weight.low_rank_vt) && is_aligned(input.x.data) && is_aligned(input.norm_weight);
}

}  // namespace

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
  p.row_slots = p.plan.row_slots();
  p.round = kPartials / p.plan.warps() / p.plan.turn_rows() * p.plan.turn_rows();
  share_blocks({rows, products.size()}, p.plan.blocks, blocks);
  int all_blocks = 0;
  for (int i = 0; i < p.parts; ++i) {
    p.part[i] = {.product = products[i], .share = {rows[i], blocks[i]}, .first_block = all_blocks};
    all_blocks += static_cast<int>(blocks[i]);
  }
  switch (p.plan.units) {
    case 1:
      return launch_units<1>(p, all_blocks, plain, stream);
    case 2:
      return launch_units<2>(p, all_blocks, plain, stream);
    case 4:
      return launch_units<4>(p, all_blocks, plain, stream);
    default:
      return Status::invalid_value;
  }
}

}  // namespace hxq::cuda
