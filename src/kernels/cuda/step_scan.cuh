// Mamba's scan in a step: kStepLanes threads have a channel, one for each of its states.

#pragma once

#include "kernels/cuda/step_products.cuh"

namespace hxq::cuda::step {

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

/// The row of dt_proj that belongs to a channel.
class DtRow {
 public:
  /// Reads weights alone.
  __device__ DtRow(const CodebookWeight& weight, int row, int lane)
      : weight_(weight),
        row_(row),
        lane_(lane),
        indices_(static_cast<const unsigned char*>(weight.indices) + int64_t{row} * weight.cols) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int j = lane + i * kStepLanes;
      level_[i] = j < weight.cols ? __ldg(weight.codebook + __ldg(indices_ + j)) : 0.0f;
    }
  }

  /// The lane's share of the product with dt.
  __device__ float multiply(const float* dt) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (const int j = lane_ + i * kStepLanes; j < weight_.cols) sum = fmaf(level_[i], dt[j], sum);
    }
#pragma unroll 1
    for (int j = lane_ + kAhead * kStepLanes; j < weight_.cols; j += kStepLanes) {
      sum = fmaf(__ldg(weight_.codebook + __ldg(indices_ + j)), dt[j], sum);
    }
    if (weight_.outlier_row_begin) {
      const uint32_t end = __ldg(weight_.outlier_row_begin + row_ + 1);
#pragma unroll 1
      for (uint32_t i = __ldg(weight_.outlier_row_begin + row_) + static_cast<uint32_t>(lane_); i < end;
           i += kStepLanes)
        sum = fmaf(__ldg(weight_.outlier_change + i), dt[__ldg(weight_.outlier_col + i)], sum);
    }
#pragma unroll 1
    for (int n = 0; n < weight_.rank; ++n) {
      float along = 0;
#pragma unroll 1
      for (int j = lane_; j < weight_.cols; j += kStepLanes)
        along = fmaf(__ldg(weight_.low_rank_vt + n * weight_.cols + j), dt[j], along);
      sum = fmaf(__ldg(weight_.low_rank_u + int64_t{row_} * weight_.rank + n), along, sum);
    }
    return sum;
  }

 private:
  static constexpr int kAhead = 4;  ///< weights of a lane that are read ahead

  const CodebookWeight& weight_;
  const int row_, lane_;
  const unsigned char* indices_;
  float level_[kAhead];
};

/// Of the block's channels.
__device__ inline void scan(const Header& header, uint32_t done, uint32_t flag) {
  const StepScan& p = header.scan;
  const int block = static_cast<int>(blockIdx.x) - p.first_block;
  if (block < 0) return;
  constexpr int kChannels = kThreads / kStepLanes;  ///< of a turn
  const int count = p.share.count(block), lane = thread() % kStepLanes, states = p.state_size;
  if (count == 0) return;
  const auto rank = static_cast<int>(p.dt_proj.cols);
  float* h = header.state;
  float* dbc = shared().partial;
  const Source u_of(p.u, done), z_of(p.z, done);
  sync_workers();  // sums of the operation before are used up
#pragma unroll 1
  for (int first = 0; first < count; first += kChannels) {
    const int own = first + thread() / kStepLanes;
    const bool is_there = own < count, has_state = is_there && lane < states;
    const int c = static_cast<int>(p.share.begin(block)) + min(own, count - 1);
    const int64_t at = int64_t{lane} * p.channels + c;
    const DtRow dt_row(p.dt_proj, c, lane);
    const float a = has_state ? __ldg(p.a + at) * kLog2E : 0.0f;
    float state = has_state ? h[at] : 0.0f;
    const float dt_bias = p.dt_bias ? __ldg(p.dt_bias + c) : 0.0f, skip = __ldg(p.d + c);
    const float u = u_of.at(c), gate = z_of.at(c);
    if (first == 0) {  // read by few threads: more would keep those from writing it who shall
      const Source from(p.dbc, done);
      for (int i = thread(); i < rank + 2 * states; i += kThreads) dbc[i] = from.at(i);
      sync_workers();
    }
    const float b = has_state ? dbc[rank + lane] : 0.0f, coefficient = has_state ? dbc[rank + states + lane] : 0.0f;
    const float delta = softplus(sum_lanes<kStepLanes>(dt_row.multiply(dbc)) + dt_bias);
    state = fmaf(fast_exp2(delta * a), state, delta * u * b);
    const float y = sum_lanes<kStepLanes>(state * coefficient);
    if (has_state) h[at] = state;
    if (is_there && lane == 0) store(p.y, c, fmaf(skip, u, y) * silu(gate), flag);
  }
}

#endif

}  // namespace hxq::cuda::step
