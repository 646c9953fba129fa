// The codebook GEMV. A block of 16 warps owns adjacent rows. Each thread keeps its columns of x in registers and copies
// the bytes of its next rows to slots of its own in shared memory, which nobody else reads: nothing waits for other
// warps until a round of rows is done. A multiprocessor holds two blocks: that of the next kernel fills its table and
// its slots while this one still works, so that memory is read without a pause from matrix to matrix.
//
// What happens between the end of a kernel and the end of the next decides the time of small matrices: the code there
// is short, and its instructions are fetched before.

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemv.cuh"

namespace hxq::cuda {
namespace {

constexpr int kThreads = GemvPlan::kWarps * 32;
constexpr int kPartials = 1024;       ///< sums of a row by one warp that wait for those of other warps
constexpr int kReadyOutliers = 1024;  ///< of a block, multiplied ahead
constexpr int kRowBegins = 512;       ///< rows of a block whose outliers are found in shared memory

struct GemvParameters {
  CodebookWeight weight;
  Input x;
  Output y;
  const float* bias;
  const float* low_rank_product;
  bool accumulate;
  bool weight_changes;
  GemvPlan plan;
};

/// What a block keeps in shared memory, before its slots.
struct GemvShared {
  alignas(1024) unsigned char table[SmallTable::kBytes];
  float partial[kPartials];
  uint32_t col[kReadyOutliers];        ///< of the block's first outliers
  float product[kReadyOutliers];       ///< their change of the weight, then that times x
  uint32_t row_begin[kRowBegins + 1];  ///< where the outliers of the block's first rows begin
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

__device__ inline float scaled_x(const GemvParameters& p, int64_t col) {
  const float x = load_element(p.x.data, p.x.dtype, col);
  return p.weight.channel_scales ? __fdividef(x, p.weight.channel_scales[col]) : x;
}

/// The rows of a block and their outliers.
struct BlockRows {
  int64_t first;
  int count;
  uint32_t first_outlier = 0, outliers = 0;

  __device__ explicit BlockRows(const GemvParameters& p)
      : first(p.plan.row_begin(p.weight.rows, blockIdx.x)),
        count(static_cast<int>(p.plan.row_begin(p.weight.rows, blockIdx.x + 1) - first)) {}

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
__device__ inline void multiply_outliers(const GemvParameters& p, const BlockRows& rows, GemvShared& shared) {
  wait_for_copies<kLater>();
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < min(rows.outliers, uint32_t{kReadyOutliers}); i += kThreads) {
    shared.product[i] *= scaled_x(p, shared.col[i]);
  }
}

/// What lane `lane` of `lanes` adds to a row of the block beside its codebook's weights.
__device__ inline float row_extras(const GemvParameters& p, const GemvShared& shared, const BlockRows& rows, int row,
                                   int lane, int lanes) {
  float sum = 0;
  if (p.weight.outlier_row_begin) {
    const auto begin_of = [&](int i) {
      return (i <= kRowBegins ? shared.row_begin[i] : p.weight.outlier_row_begin[rows.first + i]) - rows.first_outlier;
    };
    const uint32_t end = begin_of(row + 1);
#pragma unroll 1
    for (uint32_t i = begin_of(row) + lane; i < end; i += lanes) {
      if (i < kReadyOutliers) {
        sum += shared.product[i];
      } else {
        const uint32_t at = rows.first_outlier + i;
        sum += p.weight.outlier_change[at] * scaled_x(p, p.weight.outlier_col[at]);
      }
    }
  }
#pragma unroll 1
  for (int n = lane; n < p.weight.rank; n += lanes) {
    sum += p.weight.low_rank_u[(rows.first + row) * p.weight.rank + n] * p.low_rank_product[n];
  }
  return sum;
}

/// Adds up what the warps left behind for rows [begin, end) of the block, and writes y.
__device__ inline void finish_rows(const GemvParameters& p, const GemvShared& shared, const BlockRows& rows, int begin,
                                   int end) {
  constexpr int kLanes = 4;  ///< that share a row
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll 1
  for (int first = begin; first < end; first += kThreads / kLanes) {
    const int row = first + static_cast<int>(threadIdx.x) / kLanes;
    float sum = 0;
    if (row < end) {
      sum = row_extras(p, shared, rows, row, lane, kLanes);
#pragma unroll 1
      for (int w = lane; w < p.plan.warps; w += kLanes) sum += shared.partial[(row - begin) * p.plan.warps + w];
    }
    sum = sum_lanes<kLanes>(sum);
    if (row < end && lane == 0) {
      const int64_t at = rows.first + row;
      if (p.bias) sum += p.bias[at];
      if (p.accumulate) sum += load_element(p.y.data, p.y.dtype, at);
      store_element(p.y.data, p.y.dtype, at, sum);
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

  __device__ Worker(const GemvParameters& p, const BlockRows& rows, unsigned char* slots)
      : p_(p),
        slots_(slots + threadIdx.x * 16),
        row_slots_(p.plan.row_slots()),
        slot_(p.plan.slot_of(static_cast<int>(threadIdx.x))),
        first_of_warp_(p.plan.slot_of(static_cast<int>(threadIdx.x / 32 * 32))),
        rows_(rows.count),
        indices_(static_cast<const unsigned char*>(p.weight.indices) + rows.first * p.weight.cols) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) col_[u] = p.plan.unit_of(static_cast<int>(threadIdx.x), u) * GemvPlan::kUnitCols;
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
        if (col_[u] < static_cast<int>(p_.weight.cols)) continue;
#pragma unroll 1
        for (int i = 0; i < kAhead; ++i) {
          *reinterpret_cast<uint4*>(slots_ + (i * kUnits + u) * (16 * kThreads)) = make_uint4(0, 0, 0, 0);
        }
      }
    }
#pragma unroll 1
    for (int i = 0; i < kAhead - kRows; ++i) fetch(i * row_slots_, (i + kRows) % kAhead);
  }

  __device__ void load_x() {
    const auto cols = static_cast<int>(p_.weight.cols);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if constexpr (kPlain) {
        load_whole_run(p_.x.data, p_.x.dtype, col_[u], col_[u] < cols, x_[u]);
      } else {
        load_run(p_.x.data, p_.x.dtype, col_[u], cols - col_[u], x_[u]);
        if (!p_.weight.channel_scales) continue;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          if (col_[u] + i < cols) x_[u][i] = __fdividef(x_[u][i], p_.weight.channel_scales[col_[u] + i]);
        }
      }
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
    partial += thread / 32 % p_.plan.warps;
    if (p_.plan.lanes == 32) {
      const float total = sum_lanes_each(sum);
      const int of = row + thread % 32 / (32 / kRows) * row_slots_;
      if (thread % (32 / kRows) == 0 && of >= 0 && of < end) partial[of * p_.plan.warps] = total;
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float total = sum_lanes(sum[r], p_.plan.lanes);
        const int of = row + r * row_slots_;
        if (thread % p_.plan.lanes == 0 && of >= 0 && of < end) partial[of] = total;
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
        if (row < rows_ && col_[u] < static_cast<int>(p_.weight.cols)) {
          copy_async<16>(slots_ + (place * kUnits + u) * (16 * kThreads),
                         indices_ + static_cast<uint32_t>(row * static_cast<int>(p_.weight.cols) + col_[u]));
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
        const int row = min(max(first + slot_, 0), rows_ - 1), cols = static_cast<int>(p_.weight.cols);
        bytes[u] = load_bytes_unaligned(indices_ + row * cols + min(col_[u], cols - 1), indices_ + rows_ * cols - 1);
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

  const GemvParameters& p_;
  const SmallTable table_;
  unsigned char* const slots_;
  const int row_slots_, slot_, first_of_warp_, rows_;
  const unsigned char* const indices_;
  int place_ = 0;  ///< of the step's first row
  int col_[kUnits];
  float x_[kUnits][16] = {};
};

template <int kUnits, bool kPlain>
__global__ void __launch_bounds__(kThreads, kUnits == 1 ? 2 : 1) gemv_kernel(const __grid_constant__ GemvParameters p) {
  auto& shared = *reinterpret_cast<GemvShared*>(dynamic_shared);
  BlockRows rows(p);
  Worker<kUnits, kPlain> worker(p, rows, dynamic_shared + sizeof(GemvShared));
  if (p.weight_changes) wait_for_predecessors();
  const TableFill<kThreads> fill(p.weight.codebook, p.weight.k);
  worker.start();
  rows.find_outliers(p.weight);
  fetch_outliers(p.weight, rows, shared);
  fill.store();
  __syncthreads();  // the table is there

  const int step = worker.step();
  const int round = kPartials / p.plan.warps / step * step;  // rows that are finished together
  // The first step multiplies nothing: it brings the loop's instructions, so that they are there when x is.
  int begin = 0, end = 0;
#pragma unroll 1
  for (int row = -step; row < rows.count; row += step) {
    if (row + worker.ahead() >= rows.count) let_successors_begin();
    worker.multiply(row, end, shared.partial - begin * p.plan.warps);
    if (row < 0) {
      wait_for_predecessors();
      worker.load_x();
      multiply_outliers<kPlain ? worker.kRows : 0>(p, rows, shared);
      __syncthreads();  // what belongs to outliers is there
      end = min(round, rows.count);
    } else if (row + step >= end) {
      __syncthreads();
      finish_rows(p, shared, rows, begin, end);
      begin = end;
      end = min(begin + round, rows.count);
      if (begin < end) __syncthreads();
    }
  }
}

template <int kUnits>
Status launch_units(const GemvParameters& p, Stream stream) {
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(p.plan.blocks)),
                          .block = dim3(kThreads),
                          .shared_bytes = sizeof(GemvShared) + slot_bytes(current_device().compute_capability)};
  const bool plain = p.weight.cols % 16 == 0 && reinterpret_cast<uintptr_t>(p.weight.indices) % 16 == 0 &&
                     reinterpret_cast<uintptr_t>(p.x.data) % 16 == 0 && !p.weight.channel_scales;
  return plain ? launch(gemv_kernel<kUnits, true>, shape, stream, p)
               : launch(gemv_kernel<kUnits, false>, shape, stream, p);
}

Status launch_plan(const GemvParameters& p, Stream stream) {
  switch (p.plan.units) {
    case 1:
      return launch_units<1>(p, stream);
    case 2:
      return launch_units<2>(p, stream);
    case 4:
      return launch_units<4>(p, stream);
    default:
      return Status::invalid_value;
  }
}

}  // namespace

bool supports_codebook_gemv(const CodebookWeight& weight) noexcept {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.cols <= kGemvMaxCols;
}

Status codebook_gemv(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                     const GemvPlan& plan, Stream stream) noexcept {
  const GemvParameters p{.weight = weight,
                         .x = args.x,
                         .y = args.y,
                         .bias = args.bias,
                         .low_rank_product = low_rank_product,
                         .accumulate = args.accumulate,
                         .weight_changes = args.weight_changes,
                         .plan = plan};
  return launch_plan(p, stream);
}

}  // namespace hxq::cuda
