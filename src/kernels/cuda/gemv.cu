// The codebook GEMV. One block of 16 warps a multiprocessor goes through adjacent rows. Each thread keeps its columns
// of x in registers and the bytes of its next rows in flight in two sets of registers: while one set is looked up, the
// other one travels. Nothing waits for other warps until all rows are done: partial sums wait in shared memory.

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemv.cuh"

namespace hxq::cuda {
namespace {

/// Outliers of a block's rows that are brought into shared memory ahead of their use.
constexpr int kStagedOutliers = 2048;

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

/// What a block keeps in shared memory.
struct GemvShared {
  float* partial;       // [max_block_rows, warps]
  uint32_t* row_begin;  // [max_block_rows + 1], relative to the block's first outlier
  uint32_t* col;        // [staged]
  float* change;        // [staged]

  __device__ GemvShared(unsigned char* memory, const GemvParameters& p)
      : partial(reinterpret_cast<float*>(memory)),
        row_begin(reinterpret_cast<uint32_t*>(partial + p.plan.max_block_rows(p.weight.rows) * p.plan.warps)),
        col(row_begin + p.plan.max_block_rows(p.weight.rows) + 1),
        change(reinterpret_cast<float*>(col + kStagedOutliers)) {}

  static size_t bytes(const CodebookWeight& weight, const GemvPlan& plan) {
    const auto rows = static_cast<size_t>(plan.max_block_rows(weight.rows));
    const size_t outliers = weight.outlier_row_begin ? rows + 1 + 2 * kStagedOutliers : 0;
    return 4 * (rows * static_cast<size_t>(plan.warps) + outliers);
  }
};

__device__ inline void copy_word_async(void* shared, const void* global) {
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global));
}

/// Starts to bring the outliers of the block's rows; complete after cp.async.wait_all and a barrier.
__device__ inline void stage_outliers(const GemvParameters& p, const GemvShared& shared, int64_t row, int rows,
                                      uint32_t first, uint32_t count) {
  for (int i = static_cast<int>(threadIdx.x); i <= rows; i += static_cast<int>(blockDim.x)) {
    copy_word_async(shared.row_begin + i, p.weight.outlier_row_begin + row + i);
  }
  for (uint32_t i = threadIdx.x; i < min(count, uint32_t{kStagedOutliers}); i += blockDim.x) {
    copy_word_async(shared.col + i, p.weight.outlier_col + first + i);
    copy_word_async(shared.change + i, p.weight.outlier_change + first + i);
  }
}

__device__ inline float scaled_x(const GemvParameters& p, int64_t col) {
  const float x = load_element(p.x.data, p.x.dtype, col);
  return p.weight.channel_scales ? x / p.weight.channel_scales[col] : x;
}

/// What lane `lane` of `lanes` adds to a row beside its codebook's weights.
__device__ inline float row_extras(const GemvParameters& p, const GemvShared& shared, int64_t row, int local_row,
                                   uint32_t first, int lane, int lanes) {
  float sum = 0;
  if (p.weight.outlier_row_begin) {
    const uint32_t end = shared.row_begin[local_row + 1] - first;
    for (uint32_t i = shared.row_begin[local_row] - first + lane; i < end; i += lanes) {
      const bool staged = i < kStagedOutliers;
      const uint32_t col = staged ? shared.col[i] : p.weight.outlier_col[first + i];
      const float change = staged ? shared.change[i] : p.weight.outlier_change[first + i];
      sum += change * scaled_x(p, col);
    }
  }
  for (int n = lane; n < p.weight.rank; n += lanes) {
    sum += p.weight.low_rank_u[row * p.weight.rank + n] * p.low_rank_product[n];
  }
  return sum;
}

/// Adds up what the warps left behind and writes y. Several lanes go over the outliers of a row where rows are few.
__device__ inline void finish_rows(const GemvParameters& p, const GemvShared& shared, int64_t row, int rows,
                                   uint32_t first) {
  const auto threads = static_cast<int>(blockDim.x);
  int lanes = 8;
  while (lanes > 1 && rows * lanes > threads) lanes /= 2;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (int begin = 0; begin < rows; begin += threads / lanes) {
    const int i = begin + static_cast<int>(threadIdx.x) / lanes;
    float sum = 0;
    if (i < rows) {
      sum = row_extras(p, shared, row + i, i, first, lane, lanes);
      for (int w = lane; w < p.plan.warps; w += lanes) sum += shared.partial[i * p.plan.warps + w];
    }
    sum = sum_lanes(sum, lanes);
    if (i < rows && lane == 0) {
      if (p.bias) sum += p.bias[row + i];
      if (p.accumulate) sum += load_element(p.y.data, p.y.dtype, row + i);
      store_element(p.y.data, p.y.dtype, row + i, sum);
    }
  }
}

/// One thread's part of the work: which rows and columns are its own does not change.
template <int kWarps, int kUnits, bool kAligned>
class Worker {
 public:
  static constexpr int kRows = GemvPlan::rows_in_flight(kUnits);
  using Table = LookupTable<(kWarps > 8)>;
  struct Bytes {
    uint4 v[kRows][kUnits];
  };

  __device__ Worker(const GemvParameters& p, uint32_t lane_base, float* partial, int64_t first_row, int rows)
      : p_(p),
        cols_(static_cast<int>(p.weight.cols)),
        rows_(rows),
        slots_(p.plan.row_slots()),
        slot_in_warp_(p.plan.slot_in_warp(static_cast<int>(threadIdx.x))),
        lane_base_(lane_base),
        partial_(partial + threadIdx.x / 32 % p.plan.warps),
        block_(static_cast<const unsigned char*>(p.weight.indices) + first_row * p.weight.cols) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) col_[u] = p.plan.unit_of(static_cast<int>(threadIdx.x), u) * GemvPlan::kUnitCols;
  }

  /// Rows begin, begin + slots, ... of the block. What lies outside of the matrix is left as it was: nobody uses it, or
  /// it is multiplied with zeros.
  __device__ void load(Bytes& bytes, int begin) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = begin + r * slots_;
      const unsigned char* line = block_ + static_cast<uint32_t>(row * cols_);
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (row >= rows_ || col_[u] >= cols_) continue;
        bytes.v[r][u] = kAligned ? load_bytes_once(line + col_[u])
                                 : load_bytes_unaligned(line + col_[u], block_ + (rows_ * cols_ - 1));
      }
    }
  }

  __device__ void load_x() {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      load_run(p_.x.data, p_.x.dtype, col_[u], cols_ - col_[u], x_[u]);
      if (!p_.weight.channel_scales) continue;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (col_[u] + i < cols_) x_[u][i] /= p_.weight.channel_scales[col_[u] + i];
      }
    }
  }

  /// Products of a thread's rows with its part of x, summed over the lanes of a row.
  __device__ void multiply(const Bytes& bytes, int begin) const {
    const int left = rows_ - begin + slot_in_warp_;  // the same for all lanes: sums need all of them
    if (left <= 0) return;
    float sum[kRows] = {};
    if (left > (kRows - 1) * slots_) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] = multiply_row(bytes, r);
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r * slots_ < left) sum[r] = multiply_row(bytes, r);
      }
    }
    const int thread = static_cast<int>(threadIdx.x);
    if (p_.plan.lanes == 32) {
      const float total = sum_lanes_each(sum);
      const int row = begin + thread % 32 / (32 / kRows) * slots_;
      if (thread % (32 / kRows) == 0 && row < rows_) partial_[row * p_.plan.warps] = total;
      return;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float total = sum[r];
      for (int offset = p_.plan.lanes / 2; offset > 0; offset /= 2) total += __shfl_xor_sync(kAllLanes, total, offset);
      const int row = begin + r * slots_;
      if ((thread & (p_.plan.lanes - 1)) == 0 && row < rows_) partial_[row * p_.plan.warps] = total;
    }
  }

 private:
  __device__ float multiply_row(const Bytes& bytes, int r) const {
    float sum[4] = {};  // chains of additions short enough to overlap
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const uint32_t words[4] = {bytes.v[r][u].x, bytes.v[r][u].y, bytes.v[r][u].z, bytes.v[r][u].w};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        sum[i / 4] = fmaf(__uint_as_float(Table::look_up(lane_base_, words[i / 4], i % 4)), x_[u][i], sum[i / 4]);
      }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  const GemvParameters& p_;
  const int cols_, rows_, slots_, slot_in_warp_;
  const uint32_t lane_base_;
  float* const partial_;
  const unsigned char* const block_;
  int col_[kUnits];
  float x_[kUnits][16];
};

template <int kWarps, int kUnits, bool kAligned>
__global__ void __launch_bounds__(kWarps * 32, 16 / kWarps) gemv_kernel(const __grid_constant__ GemvParameters p) {
  using Work = Worker<kWarps, kUnits, kAligned>;
  using Table = typename Work::Table;
  extern __shared__ __align__(1024) unsigned char memory[];
  const uint32_t lane_base = Table::lane_base(memory);
  const GemvShared shared(Table::end(memory), p);
  const int64_t first_row = p.plan.row_begin(p.weight.rows, blockIdx.x);
  const auto rows = static_cast<int>(p.plan.row_begin(p.weight.rows, blockIdx.x + 1) - first_row);
  Work work(p, lane_base, shared.partial, first_row, rows);
  int begin = p.plan.slot_of(static_cast<int>(threadIdx.x));
  const int step = Work::kRows * p.plan.row_slots();
  const int last_begin = rows + p.plan.slot_in_warp(static_cast<int>(threadIdx.x));

  if (p.weight_changes) wait_for_predecessors();
  uint32_t outlier_begin = 0, outlier_end = 0;
  if (p.weight.outlier_row_begin) {
    outlier_begin = __ldg(p.weight.outlier_row_begin + first_row);
    outlier_end = __ldg(p.weight.outlier_row_begin + first_row + rows);
  }
  const TableFill<kWarps * 32> table(p.weight.codebook, p.weight.k);
  typename Work::Bytes a = {}, b = {};
  work.load(a, begin);
  table.template store<Table>(lane_base, [](float level) { return __float_as_uint(level); });
  if (p.weight.outlier_row_begin) {
    stage_outliers(p, shared, first_row, rows, outlier_begin, outlier_end - outlier_begin);
  }
  let_successors_begin();
  wait_for_predecessors();
  work.load_x();
  work.load(b, begin + step);
  __syncthreads();
  // Warps as a whole: a lane whose own rows have ended helps with the sums of the others.
  for (; begin < last_begin; begin += 2 * step) {
    work.multiply(a, begin);
    work.load(a, begin + 2 * step);
    work.multiply(b, begin + step);
    work.load(b, begin + 3 * step);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  finish_rows(p, shared, first_row, rows, outlier_begin);
}

template <int kWarps, int kUnits>
Status launch_units(const GemvParameters& p, Stream stream) {
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(p.plan.blocks)),
      .block = dim3(kWarps * 32),
      .shared_bytes = LookupTable<(kWarps > 8)>::kSharedBytes + GemvShared::bytes(p.weight, p.plan)};
  const bool aligned = p.weight.cols % 16 == 0 && reinterpret_cast<uintptr_t>(p.weight.indices) % 16 == 0;
  return aligned ? launch(gemv_kernel<kWarps, kUnits, true>, shape, stream, p)
                 : launch(gemv_kernel<kWarps, kUnits, false>, shape, stream, p);
}

template <int kWarps>
Status launch_warps(const GemvParameters& p, Stream stream) {
  switch (p.plan.units) {
    case 1:
      return launch_units<kWarps, 1>(p, stream);
    case 2:
      return launch_units<kWarps, 2>(p, stream);
    case 3:
      return launch_units<kWarps, 3>(p, stream);
    case 4:
      return launch_units<kWarps, 4>(p, stream);
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
  return plan.block_warps == 8 ? launch_warps<8>(p, stream) : launch_warps<16>(p, stream);
}

}  // namespace hxq::cuda
