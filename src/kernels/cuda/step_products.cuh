// Products of a step: as the GEMV, but x and what belongs to outliers come from shared memory.

#pragma once

#include "kernels/cuda/step_memory.cuh"

namespace hxq::cuda::step {

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }

/// Brings x to shared memory, pairs of elements, of which a thread asks for several at once; the sum of its squares
/// before a norm's weights, of the thread's elements.
__device__ inline float bring_x(const StepInput& input, const SharedX& to, uint32_t done) {
  constexpr int kTogether = 2;
  const Source x(input.x, done);
  const int pairs = input.cols / 2;
  float squares = 0;
#pragma unroll 1
  for (int first = thread(); first < pairs; first += kThreads * kTogether) {
    WordPair pair[kTogether];
    float2 weight[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int at = first + i * kThreads;
      if (at >= pairs) continue;
      weight[i] = input.norm_weight
                      ? make_float2(__ldg(input.norm_weight + 2 * at), __ldg(input.norm_weight + 2 * at + 1))
                      : make_float2(1, 1);
      pair[i] = x.ask(at);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int at = first + i * kThreads;
      if (at >= pairs) continue;
      const float2 v = x.take(at, pair[i]);
      squares = fmaf(v.x, v.x, fmaf(v.y, v.y, squares));
      to.put_pair(at, v.x * weight[i].x, v.y * weight[i].y);
    }
  }
  return squares;
}

/// 16 weights of a row times x.
__device__ inline float multiply_unit(const float (&weight)[16], const float (&x)[16]) {
  float sum[2] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i) sum[i % 2] = fmaf(weight[i], x[i], sum[i % 2]);
  return sum[0] + sum[1];
}

/// The share of lane `lane` of `lanes` in what the low-rank term gives a row of the block.
__device__ inline float low_rank_product(const Header& header, int row, int lane, int lanes) {
  float sum = 0;
#pragma unroll 1
  for (int n = lane; n < header.part.rank; n += lanes) {
    sum = fmaf(__ldg(header.part.low_rank_u + int64_t{header.work.first_row + row} * header.part.rank + n),
               shared().low_rank[n], sum);
  }
  return sum;
}

/// What lane `lane` of `lanes` adds to a row of the block beside its codebook's weights.
__device__ inline float row_extra(const Header& header, int row, const SharedX& x, int lane, int lanes) {
  float sum = low_rank_product(header, row, lane, lanes);
  if (header.part.outlier_row_begin) {
    const uint32_t end = header.begin_of(row + 1);
#pragma unroll 1
    for (uint32_t i = header.begin_of(row) + static_cast<uint32_t>(lane); i < end; i += static_cast<uint32_t>(lanes)) {
      sum += header.outlier_product(i, x);
    }
  }
  return sum;
}

/// What rows [begin, end) get beside their products.
__device__ inline void read_base(const Header& header, int begin, int end, uint32_t done) {
  const StepConv& conv = header.part.conv;
#pragma unroll 1
  for (int row = begin + kThreads - 1 - thread(); row < end; row += kThreads) {  // x keeps the first threads busy
    const int at = header.work.first_row + row;
    float base = header.part.bias ? __ldg(header.part.bias + at) : 0.0f;
    if (header.part.residual.data) base += Source(header.part.residual, done).at(at);
    shared().base[row - begin] = base;
    if (!conv.weight || at >= conv.channels) continue;
    float* state = header.state + at;
    const int newest = conv.width - 1, first = conv.kept - newest;
    float sum = conv.bias ? __ldg(conv.bias + at) : 0.0f;
#pragma unroll
    for (int j = 0; j < kStepTaps - 1; ++j) {
      if (j < newest) sum = fmaf(__ldg(conv.weight + j * conv.channels + at), state[(first + j) * conv.channels], sum);
    }
    shared().conv_sum[row - begin] = sum;
    shared().conv_tap[row - begin] = __ldg(conv.weight + newest * conv.channels + at);
#pragma unroll 1
    for (int t = 0; t + 1 < conv.kept; ++t) state[t * conv.channels] = state[(t + 1) * conv.channels];
  }
}

/// What becomes of a row's product; read from the header before x is there.
class RowEnd {
 public:
  __device__ explicit RowEnd(const Header& header)
      : y_(header.part.y),
        state_(header.state),
        first_row_(header.work.first_row),
        convolved_(header.part.conv.weight ? header.part.conv.channels : 0),
        newest_((header.part.conv.kept - 1) * header.part.conv.channels),
        cols_(header.common.input.norm_weight ? static_cast<float>(header.common.input.cols) : 0.0f),
        eps_(header.common.input.eps) {}

  /// What a norm multiplies sums with; called by whole warps.
  __device__ float factor() const {
    if (cols_ == 0) return 1.0f;
    const float squares = sum_lanes<GemvPlan::kWarps>(shared().squares[threadIdx.x % GemvPlan::kWarps]);
    return rsqrtf(__fdividef(squares, cols_) + eps_);
  }

  /// Row `row` of the block, number `at` of those that are finished together; y is its product.
  __device__ void finish(int row, int at, float y, uint32_t flag) const {
    const int to = first_row_ + row;
    y += shared().base[at];
    if (to < convolved_) {
      if (newest_ >= 0) state_[newest_ + to] = y;
      y = silu(fmaf(shared().conv_tap[at], y, shared().conv_sum[at]));
    }
    store(y_, to, y, flag);
  }

 private:
  StepOutput y_;
  float* state_;
  int first_row_, convolved_, newest_;
  float cols_, eps_;
};

/// Few rows, whole ones of a warp. The units of a warp's rows, one row after the other, are dealt to its lanes.
class FewRows {
 public:
  /// What there is to know before x is there.
  __device__ void prepare(const Header& header, const SharedX& x) {
    rows_ = header.work.rows;
    rank_ = header.part.rank;
    cols_ = header.common.input.cols;
    if (!header.part.outlier_row_begin) return;
#pragma unroll
    for (int r = 0; r < kStepUnits; ++r) {
      if (row_of(r) >= rows_) break;
      const uint32_t begin = header.begin_of(row_of(r)), end = header.begin_of(row_of(r) + 1);
      has_more_ = has_more_ || end - begin > 32 || end - header.work.first_outlier > kReadyOutliers;
      if (has_more_ || begin + static_cast<uint32_t>(lane()) >= end) continue;
      const uint32_t at = header.work.first_outlier % 4 + begin - header.work.first_outlier;
      outlier_place_[r] = x.place(header.cols[at + static_cast<uint32_t>(lane())]);
      outlier_[r] = header.changes[at + static_cast<uint32_t>(lane())];
    }
    if (!has_more_) return;
#pragma unroll
    for (int r = 0; r < kStepUnits; ++r) outlier_[r] = 0;
  }

  __device__ void multiply(const Header& header, const RowEnd& row_end, const SharedX& x, const unsigned char* bytes,
                           Ring& ring, uint32_t flag) const {
    const SmallTable table;
    const int row_units = cols_ / GemvPlan::kUnitCols;
    float sum[kStepUnits];
#pragma unroll
    for (int r = 0; r < kStepUnits; ++r) sum[r] = outlier_[r] * x.of_place(outlier_place_[r]);
    hopper::wait(&shared().full[ring.slot()], ring.parity());
    int unit = lane(), r = 0;
#pragma unroll 1
    while (true) {
      for (; unit >= row_units; unit -= row_units) ++r;
      if (row_of(r) >= rows_) break;
      float weight[16], own_x[16];
      const auto at = ring.position + static_cast<uint32_t>(row_of(r) * cols_ + unit * GemvPlan::kUnitCols);
      table.look_up_all(*reinterpret_cast<const uint4*>(bytes + ring.wrapped(at)), weight);
      x.load(unit, own_x);
      const float product = multiply_unit(weight, own_x);
#pragma unroll
      for (int i = 0; i < kStepUnits; ++i) sum[i] += i == r ? product : 0.0f;
      unit += 32;
    }
    __syncwarp();
    if (lane() == 0) hopper::arrive(&shared().empty[ring.slot()]);
    ring.advance(static_cast<uint32_t>(rows_ * cols_));
    if (has_more_ || rank_ > 0) {
#pragma unroll 1
      for (int own = 0; own < kStepUnits && row_of(own) < rows_; ++own) {
        const float more = has_more_ ? row_extra(header, row_of(own), x, lane(), 32)
                                     : low_rank_product(header, row_of(own), lane(), 32);
#pragma unroll
        for (int i = 0; i < kStepUnits; ++i) sum[i] += i == own ? more : 0.0f;
      }
    }
    const float total = row_end.factor() * sum_lanes_each(sum);
    constexpr int kLanes = 32 / kStepUnits;  ///< that have the same row's sum
    const int row = row_of(lane() / kLanes);
    if (lane() % kLanes == 0 && row < rows_) row_end.finish(row, row, total, flag);
  }

 private:
  __device__ static int lane() { return thread() % 32; }
  /// Row number r of the warp's.
  __device__ static int row_of(int r) { return thread() / 32 + r * GemvPlan::kWarps; }

  int rows_ = 0, cols_ = 0, rank_ = 0;
  float outlier_[kStepUnits] = {};           ///< the lane's, by row
  uint32_t outlier_place_[kStepUnits] = {};  ///< of the element of x that it is multiplied with
  bool has_more_ = false;  ///< than one outlier for a lane, or some that are not in shared memory: found row by row
};

/// The thread's share of products of rows [begin, end), which come as chunks: its columns do not change.
template <int kUnits>
__device__ inline void multiply_rows(const Header& header, int begin, int end, const SharedX& x,
                                     const unsigned char* bytes, Ring& ring) {
  constexpr int kRows = GemvPlan::rows_at_once(kUnits);
  const SmallTable table;
  const GemvPlan plan = header.common.plan;
  const int cols = header.common.input.cols, row_slots = plan.row_slots(), step = kRows * row_slots;
  const int slot = plan.slot_of(thread()), first_of_warp = plan.slot_of(thread() / 32 * 32);
  uint32_t col[kUnits];
  float own_x[kUnits][16] = {};
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int unit_col = plan.unit_of(thread(), u) * GemvPlan::kUnitCols;
    col[u] = static_cast<uint32_t>(unit_col < cols ? unit_col : 0);
    if (unit_col < cols) x.load(unit_col / GemvPlan::kUnitCols, own_x[u]);
  }
#pragma unroll 1
  for (int first = begin; first < end; first += step) {
    hopper::wait(&shared().full[ring.slot()], ring.parity());
    float sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = 0;
      if (first + r * row_slots + first_of_warp >= end) continue;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint32_t at = ring.position + static_cast<uint32_t>((r * row_slots + slot) * cols) + col[u];
        float weight[16];
        table.look_up_all(*reinterpret_cast<const uint4*>(bytes + ring.wrapped(at)), weight);
        sum[r] += multiply_unit(weight, own_x[u]);
      }
    }
    __syncwarp();
    if (thread() % 32 == 0) hopper::arrive(&shared().empty[ring.slot()]);
    ring.advance(static_cast<uint32_t>(min(step, end - first) * cols));
    float* partial = shared().partial + (first - begin) * plan.groups + plan.group_of(thread());
    if (plan.lanes() == 32) {
      const float total = sum_lanes_each(sum);
      const int of = slot + thread() % 32 / (32 / kRows) * row_slots;
      if (thread() % (32 / kRows) == 0 && first + of < end) partial[of * plan.groups] = total;
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float total = sum_lanes(sum[r], plan.lanes());
        const int of = slot + r * row_slots;
        if ((thread() & (plan.lanes() - 1)) == 0 && first + of < end) partial[of] = total;
      }
    }
  }
}

/// Many rows: warps share them, and leave sums for each other.
__device__ inline void multiply_large(const Header& header, const RowEnd& row_end, const SharedX& x,
                                      const unsigned char* bytes, Ring& ring, uint32_t done, uint32_t flag) {
  constexpr int kLanes = 4;  ///< that finish a row together
  const GemvPlan plan = header.common.plan;
  const int round = rows_of_round(plan);
  const int lane = thread() % kLanes;
  const float factor = row_end.factor();
#pragma unroll 1
  for (int begin = 0; begin < header.work.rows; begin += round) {
    const int end = min(begin + round, header.work.rows);
    if (begin > 0) {
      sync_workers();  // what rows of the round before left is used up
      read_base(header, begin, end, done);
    }
#pragma unroll 1
    for (int first = begin; first < end; first += kThreads / kLanes) {
      const int row = first + thread() / kLanes;
      const float extra = sum_lanes<kLanes>(row < end ? row_extra(header, row, x, lane, kLanes) : 0.0f);
      if (row < end && lane == 0) shared().extra[row - begin] = extra;
    }
    if (plan.units == 1) {
      multiply_rows<1>(header, begin, end, x, bytes, ring);
    } else {
      multiply_rows<2>(header, begin, end, x, bytes, ring);
    }
    sync_workers();
#pragma unroll 1
    for (int first = begin; first < end; first += kThreads / kLanes) {
      const int row = first + thread() / kLanes, at = row - begin;
      float sum = 0;
      if (row < end) {
#pragma unroll 1
        for (int w = lane; w < plan.groups; w += kLanes) sum += shared().partial[at * plan.groups + w];
      }
      sum = sum_lanes<kLanes>(sum);
      if (row < end && lane == 0) {
        row_end.finish(row, at, factor * (sum + shared().extra[at]), flag);
      }
    }
  }
}

/// Vt x.
__device__ inline void multiply_low_rank(const Header& header, const SharedX& x) {
  if (const int n = thread() / 32; n < header.part.rank) {
    const int cols = header.common.input.cols;
    float along = 0;
    for (int c = thread() % 32; c < cols; c += 32) {
      along = fmaf(__ldg(header.part.low_rank_vt + n * cols + c), x.at(static_cast<uint32_t>(c)), along);
    }
    along = sum_lanes(along);
    if (thread() % 32 == 0) shared().low_rank[n] = along;
  }
  sync_workers();
}

/// The table of the part's levels: 8 threads write the 32 copies of an entry, 16 bytes each.
__device__ inline void fill_table(const Header& header) {
  constexpr int kEntries = 256 * 8 / kThreads;  ///< of a thread
  const int first = thread() / 8, k = header.part.k;
  float level[kEntries];
#pragma unroll
  for (int i = 0; i < kEntries; ++i) {
    const int entry = first + i * (kThreads / 8);
    level[i] = entry < k ? header.codebook[entry] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kEntries; ++i) {
    *reinterpret_cast<float4*>(shared().table + (first + i * (kThreads / 8)) * 128 + thread() % 8 * 16) =
        make_float4(level[i], level[i], level[i], level[i]);
  }
}

/// The block's share of an operation.
__device__ inline void multiply(const Header& header, const SharedX& x, const unsigned char* bytes, Ring& ring,
                                uint32_t done, uint32_t flag) {
  sync_workers();  // the table, x and sums of the operation before are used up
  fill_table(header);
  const int first_round = header.common.has_few_rows ? header.work.rows : rows_of_round(header.common.plan);
  read_base(header, 0, min(header.work.rows, first_round), done);
  const RowEnd row_end(header);
  FewRows rows;
  if (header.common.has_few_rows) rows.prepare(header, x);
  const float squares = sum_lanes(bring_x(header.common.input, x, done));
  if (thread() % 32 == 0) shared().squares[thread() / 32] = squares;
  sync_workers();  // x and the table are there
  if (header.part.rank > 0) multiply_low_rank(header, x);
  if (header.common.has_few_rows) {
    rows.multiply(header, row_end, x, bytes, ring, flag);
  } else {
    multiply_large(header, row_end, x, bytes, ring, done, flag);
  }
}

#endif

}  // namespace hxq::cuda::step
