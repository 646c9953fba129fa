// The warps that multiply, and what comes of it.

#pragma once

#include "kernels/cuda/mamba_spread_parts.cuh"

namespace hxq::cuda::mamba_spread_parts {

template <int kTokens, bool kIsWide>
class Worker : Block {
 public:
  __device__ explicit Worker(const Parameters& parameters)
      : Block(parameters), in_row_(rows(kIn).first + rows(kIn).begin(warp())), in_rows_(rows(kIn).size(warp())) {}

  /// Before the predecessors have ended.
  __device__ void prepare() {
    for (int i = thread(); i < kTokens * plan.x_pitch(); i += Plan::kWorkers) floats(plan.x_at)[i] = 0;
    for (int i = thread(); i < 3 * kTokens * Plan::kMostChannels; i += Plan::kWorkers) floats(plan.u_at)[i] = 0;
  }

  __device__ void run() {
    look_up_in(0);
    number_ = *p.epoch;
    float2 h[kTokens][kHiddenTurns];
    load_hidden(h);
#pragma unroll 1
    for (layer_ = 0; layer_ < p.layers; ++layer_) {
      ++number_;
      if (layer_ > 0) wait_for_hidden(h, number_ - 1);
      put_x(h);
      sync();
      multiply_in();
      look_up_x_and_dt();
      convolve();
      sync();
      multiply_x();
      look_up_out();
      wait(kXParts, layer_);
      add_up_dbc();
      sync();
      scan();
      sync();
      multiply_out();
      if (owned_rows() > 0) {  // else nothing would keep a warp from being two layers late for the barrier
        wait(kOutParts, layer_);
        add_up_hidden();
      }
      if (layer_ + 1 < p.layers) look_up_in(layer_ + 1);
    }
    wait_for_hidden(h, number_);
    leave(kXFree);
    sync();  // all blocks have read what they were given
    store_hidden();
    if (blockIdx.x == 0 && thread() == 0) *p.epoch = number_;
  }

 private:
  static constexpr Plan::Widths kWidths = kIsWide ? Plan::kWide : Plan::kNarrow;
  static constexpr int kInRows = kWidths.in_rows, kXRows = kWidths.x_rows, kDtRows = kWidths.dt_rows,
                       kOutRows = kWidths.out_rows, kSteps = kWidths.hidden / Plan::kStepCols;
  /// Steps of in_proj's columns that are looked up before x is there, as many as there are registers for, and then at
  /// once.
  static constexpr int kAhead = kIsWide ? 2 : 6 - kTokens, kNow = kIsWide ? 3 : kTokens;
  static_assert(kAhead < kSteps && (kSteps - kAhead) % kNow == 0);
  static constexpr int kDtItems = next_power(kDtRows * kTokens);
  static constexpr int kHiddenTurns = (kWidths.hidden / 2 + Plan::kWorkers - 1) / Plan::kWorkers;
  static constexpr int kChannelTurns = (2 * Plan::kMostChannels * kTokens + Plan::kWorkers - 1) / Plan::kWorkers;
  static constexpr int kOwnTurns = (kOutRows / Plan::kOwners * kTokens * 16 + Plan::kWorkers - 1) / Plan::kWorkers;

  __device__ static int thread() { return static_cast<int>(thread_of_block()); }
  __device__ static int sub() { return lane() % 16; }
  __device__ static int half_warp() { return thread() / 16; }
  __device__ static void sync() { asm volatile("bar.sync 1, %0;" ::"n"(Plan::kWorkers) : "memory"); }
  // Of a warp, but for dt_proj's channels, which half a warp has.
  __device__ int x_row() const { return rows(kX).begin(warp()); }
  __device__ int x_rows() const { return rows(kX).size(warp()); }
  __device__ int dt_channel() const { return rows(kDt).begin(half_warp()); }
  __device__ int dt_rows() const { return rows(kDt).size(half_warp()); }
  __device__ int out_row() const { return rows(kOut).first + rows(kOut).begin(warp()); }
  __device__ int out_rows() const { return rows(kOut).size(warp()); }
  // The block's own rows of the hidden state.
  __device__ int owned_row() const { return (cluster * Plan::kBlocks + block) * plan.out_rows; }
  __device__ int owned_rows() const { return max(0, min(plan.out_rows, plan.hidden - owned_row())); }
  __device__ void leave(Barrier i) const {
    __syncwarp();
    if (lane() == 0) hopper::arrive(barrier(i));
  }

  __device__ float* u_of(int kind, int token) const {
    return floats(plan.u_at) + (kind * kTokens + token) * Plan::kMostChannels;
  }
  __device__ float vector(int kind, int channel) const {
    return floats(plan.vectors_at)[kind * plan.pitch() + channel];
  }

  // Levels are looked up before x is there.

  __device__ void look_up_in(int number) {
    wait(kInThere, number);
    look_up_in_from(0, in_);
  }
  template <int kCount>
  __device__ void look_up_in_from(int step, Weights<kInRows, kCount>& weights) const {
    weights.look_up(Tables::lane_base(1, lane()), plan.bytes_at[kIn] + warp() * plan.in_rows_of_warp * plan.hidden,
                    plan.hidden, in_rows_, step * Plan::kStepCols + lane() * 4, plan.hidden);
  }
  __device__ void look_up_x_and_dt() {
    wait(kXThere, layer_);
    x_.look_up(Tables::lane_base(0, lane()), plan.bytes_at[kX] + x_row() * plan.channels, plan.channels, x_rows(),
               lane() * 4, own);
    dt_.look_up(Tables::lane_base(1, lane()), plan.bytes_at[kDt] + dt_channel() * plan.rank, plan.rank, dt_rows(),
                sub() * 4, plan.rank);
    leave(kXFree);
  }
  __device__ void look_up_out() {
    wait(kOutThere, layer_);
    out_.look_up(Tables::lane_base(0, lane()),
                 plan.bytes_at[kOut] + warp() * Plan::kOwners * plan.out_rows * plan.channels, plan.channels,
                 out_rows(), lane() * 4, own);
    leave(kOutFree);
  }

  /// Adds what outliers are more than their levels. `row`: the range's first; `x`: the first column's element of the
  /// first token.
  template <int kProduct, int kRows, int kCount>
  __device__ void add_outliers(int range, int row, int lanes, const float* x, int pitch, float (&sum)[kCount]) const {
    const uint32_t* begins = begins_of(layer_, kProduct);
    const uint32_t end = begins[range + 1];
#pragma unroll 1
    for (uint32_t i = begins[range] + static_cast<uint32_t>(lane() % lanes); i < end;
         i += static_cast<uint32_t>(lanes)) {
      uint2 outlier;
      if (i < Plan::kListed) {
        outlier = list_of(layer_, kProduct)[i];
      } else {
        outlier = find_outlier(layer(layer_).matrix[kProduct], begins[Plan::kRanges + 1] + i, row, first_col(kProduct),
                               cols(kProduct));
      }
      if (outlier.x == kNoOutlier) continue;
      const float* from = x + (outlier.x & 0xffff);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float product = __uint_as_float(outlier.y) * from[t * pitch];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r * kTokens + t] += r == static_cast<int>(outlier.x >> 16) ? product : 0.0f;
      }
    }
  }

  // The hidden state: a thread has pairs of columns.

  __device__ static int col_of(int turn) { return 2 * (turn * Plan::kWorkers + thread()); }

  __device__ void load_hidden(float2 (&h)[kTokens][kHiddenTurns]) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const int row = row_of(t);
#pragma unroll
      for (int turn = 0; turn < kHiddenTurns; ++turn) {
        const int col = col_of(turn);
        const float* from = p.h + row * p.h_stride + col;
        h[t][turn] = row >= 0 && col < plan.hidden ? make_float2(from[0], from[1]) : make_float2(0, 0);
      }
    }
#pragma unroll
    for (int turn = 0; turn < kOwnTurns; ++turn) {
      const int item = turn * (Plan::kWorkers / 16) + half_warp(), r = item / kTokens;
      const int row = row_of(item % kTokens);
      owned_[turn] = r < owned_rows() && row >= 0 ? p.h[row * p.h_stride + owned_row() + r] : 0.0f;
    }
  }
  __device__ void wait_for_hidden(float2 (&h)[kTokens][kHiddenTurns], uint32_t number) const {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int turn = 0; turn < kHiddenTurns; ++turn) {
        const int col = col_of(turn);
        if (col < plan.hidden) h[t][turn] = wait_for_pair(p.hidden + t * plan.hidden + col, number);
      }
    }
  }
  /// x of in_proj, but for the factor of the norm.
  __device__ void put_x(const float2 (&h)[kTokens][kHiddenTurns]) const {
    if (thread() == 0) {
      hopper::arrive_and_expect_bytes(barrier(kXParts), Plan::kBlocks * Plan::kWarps * kTokens * Plan::kXSlots * 4);
      if (owned_rows() > 0) {
        hopper::arrive_and_expect_bytes(barrier(kOutParts),
                                        static_cast<uint32_t>(Plan::kBlocks * owned_rows() * kTokens * 4));
      }
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float sum = 0;
#pragma unroll
      for (int turn = 0; turn < kHiddenTurns; ++turn) {
        const int col = col_of(turn);
        const float2 value = h[t][turn];
        sum = fmaf(value.x, value.x, fmaf(value.y, value.y, sum));
        if (col >= plan.hidden) continue;
        const float2 weight = *reinterpret_cast<const float2*>(floats(plan.norm_at) + col);
        *reinterpret_cast<float2*>(floats(plan.x_at) + t * plan.x_pitch() + col) =
            make_float2(value.x * weight.x, value.y * weight.y);
      }
      sum = sum_lanes<32>(sum);
      if (lane() == 0) floats(plan.squares_at)[t * Plan::kWarps + warp()] = sum;
    }
  }
  __device__ float scale_of(int token) const {
    const auto* squares = reinterpret_cast<const float4*>(floats(plan.squares_at) + token * Plan::kWarps);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < Plan::kWarps / 4; ++i) sum += squares[i].x + squares[i].y + squares[i].z + squares[i].w;
    return rsqrtf(sum / static_cast<float>(plan.hidden) + p.eps);
  }

  __device__ void multiply_in() const {
    constexpr int kItems = next_power(kInRows * kTokens), kLanesEach = 32 / kItems;
    const int item = lane() / kLanesEach, r = item / kTokens, t = item % kTokens;
    const float* x = floats(plan.x_at);
    const float* biases = layer(layer_).in_bias;
    const float bias = biases && r < in_rows_ ? __ldg(biases + in_row_ + r) : 0.0f;
    float sum[kItems] = {};
    in_.template multiply<kTokens>(x + lane() * 4, plan.x_pitch(), true, sum);
#pragma unroll 1
    for (int step = kAhead; step < kSteps; step += kNow) {
      Weights<kInRows, kNow> rest;
      look_up_in_from(step, rest);
      rest.template multiply<kTokens>(x + step * Plan::kStepCols + lane() * 4, plan.x_pitch(), true, sum);
    }
    leave(kInFree);
    wait(kListsThere, layer_);
    add_outliers<kIn, kInRows>(warp(), in_row_, 32, x, plan.x_pitch(), sum);
    const float scale = scale_of(t), value = sum_each<32, kItems>(sum);
    if (lane() % kLanesEach == 0 && r < in_rows_) {
      store_word(p.xz + t * 2 * plan.inner + in_row_ + r, fmaf(value, scale, bias), number_);
    }
  }

  // Half of the first threads have x, and half z, of a channel.

  __device__ static int channel() { return thread() % Plan::kMostChannels; }
  __device__ static bool has_x() { return thread() % (2 * Plan::kMostChannels) < Plan::kMostChannels; }
  __device__ static int token_of(int turn) { return (turn * Plan::kWorkers + thread()) / (2 * Plan::kMostChannels); }

  __device__ void convolve() {
    const int c = channel();
    if (c >= own) return;
#pragma unroll
    for (int turn = 0; turn < kChannelTurns; ++turn) {
      const int token = token_of(turn);
      if (token >= kTokens) continue;
      const uint64_t* words = p.xz + token * 2 * plan.inner + first_channel + c;
      if (!has_x()) {
        u_of(1, token)[c] = silu(wait_for_word(words + plan.inner, number_));
        continue;
      }
      float* past = past_of(layer_, token) + c;
      float sum = layer(layer_).conv_bias ? vector(Plan::kConvBias, c) : 0.0f;
#pragma unroll
      for (int j = 0; j < Plan::kTaps - 1; ++j) {
        const float value = past[j * plan.pitch()];
        sum = fmaf(vector(Plan::kFilter + j, c), value, sum);
        if (j > 0) past[(j - 1) * plan.pitch()] = value;
      }
      const float tap = vector(Plan::kFilter + Plan::kTaps - 1, c);
      const float x = wait_for_word(words, number_);
      u_of(0, token)[c] = silu(fmaf(tap, x, sum));
      past[(Plan::kTaps - 2) * plan.pitch()] = x;
    }
  }

  /// Sums of the block's channels go to all blocks of the cluster: lane l of a half has what goes to block l.
  __device__ void multiply_x() const {
    constexpr int kItems = next_power(kXRows * kTokens), kLanesEach = 32 / kItems;
    static_assert(kXRows <= Plan::kXSlots && Plan::kXSlots == 12);
    float sum[kItems] = {};
    x_.template multiply<kTokens>(u_of(0, 0) + lane() * 4, Plan::kMostChannels, lane() * 4 < own, sum);
    add_outliers<kX, kXRows>(warp(), x_row(), 32, u_of(0, 0), Plan::kMostChannels, sum);
    const float value = sum_each<32, kItems>(sum);
    const auto there = static_cast<uint32_t>(sub());
    const uint32_t there_barrier = hopper::address_in_block(barrier(kXParts), there);
#pragma unroll
    for (int first = 0; first < kTokens; first += 2) {
      const int t = min(first + lane() / 16, kTokens - 1);
      float row[Plan::kXSlots] = {};
#pragma unroll
      for (int r = 0; r < kXRows; ++r) row[r] = __shfl_sync(kAllLanes, value, (r * kTokens + t) * kLanesEach);
      if (first + lane() / 16 >= kTokens) continue;
      const float* to = floats(plan.x_parts_at) + ((block * kTokens + t) * Plan::kWarps + warp()) * Plan::kXSlots;
      const uint32_t address = hopper::address_in_block(to, there);
#pragma unroll
      for (int i = 0; i < Plan::kXSlots; i += 4) {
        hopper::store_there(address + 4 * i, make_float4(row[i], row[i + 1], row[i + 2], row[i + 3]), there_barrier);
      }
    }
  }
  __device__ void add_up_dbc() const {
    const int t = thread() / (Plan::kWarps * Plan::kXSlots), slot = thread() % (Plan::kWarps * Plan::kXSlots);
    const int row = slot / Plan::kXSlots * plan.x_rows_of_warp + slot % Plan::kXSlots;
    if (t >= kTokens || slot % Plan::kXSlots >= plan.x_rows_of_warp || row >= plan.x_rows()) return;
    const float* from = floats(plan.x_parts_at) + t * Plan::kWarps * Plan::kXSlots + slot;
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < Plan::kBlocks; ++i) sum[i % 4] += from[i * kTokens * Plan::kWarps * Plan::kXSlots];
    floats(plan.dbc_at)[t * plan.x_rows() + row] = sum[0] + sum[1] + (sum[2] + sum[3]);
  }

  /// 16 lanes have some channels, a state each.
  __device__ void scan() {
    constexpr int kLanesEach = 16 / kDtItems;
    const float* dbc = floats(plan.dbc_at);
    const int pitch = plan.x_rows(), item = sub() / kLanesEach, r = item / kTokens, t = item % kTokens;
    const int first = dt_channel(), count = dt_rows(), c = first + r;
    const bool is_there = r < count;
    const float bias = layer(layer_).dt_bias && is_there ? vector(Plan::kDtBias, c) : 0.0f;
    const float skip = layer(layer_).d && is_there ? vector(Plan::kSkip, c) : 0.0f;
    const float u = is_there ? u_of(0, t)[c] : 0.0f, gate = is_there ? u_of(1, t)[c] : 0.0f;
    float sum[kDtItems] = {};
    dt_.template multiply<kTokens>(dbc + sub() * 4, pitch, sub() * 4 < plan.rank, sum);
    add_outliers<kDt, kDtRows>(half_warp(), first_channel + first, 16, dbc, pitch, sum);
    const float delta = softplus(sum_each<16, kDtItems>(sum) + bias), added = delta * u;
    const float delta2 = delta * kLog2E;
    const float* rates = floats(plan.vectors_at) + (Plan::kRates + sub()) * plan.pitch() + first;
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      const float* bc = dbc + token * pitch + plan.rank + sub();
      const float b = bc[0], coefficient = bc[Plan::kStates];
      float* states = states_of(layer_, token) + sub() * plan.pitch() + first;
#pragma unroll
      for (int i = 0; i < kDtRows; ++i) {  // what is not there is read, as neighbours are, and not used
        const int at = i * kTokens + token;
        const float step = __shfl_sync(kAllLanes, delta2, at * kLanesEach, 16);
        const float step_u = __shfl_sync(kAllLanes, added, at * kLanesEach, 16);
        const float state = fmaf(fast_exp2(step * rates[i]), states[i], step_u * b);
        if (i < count) states[i] = state;
        sum[at] = state * coefficient;
      }
    }
    const float y = fmaf(skip, u, sum_each<16, kDtItems>(sum));
    if (is_there && sub() % kLanesEach == 0) u_of(2, t)[c] = y * gate;
    leave(kScanFree);
  }

  /// Sums of the block's channels go to the block that owns the row: those of a warp to two.
  __device__ void multiply_out() const {
    constexpr int kItems = next_power(kOutRows * kTokens), kLanesEach = 32 / kItems;
    float sum[kItems] = {};
    out_.template multiply<kTokens>(u_of(2, 0) + lane() * 4, Plan::kMostChannels, lane() * 4 < own, sum);
    add_outliers<kOut, kOutRows>(warp(), out_row(), 32, u_of(2, 0), Plan::kMostChannels, sum);
    const float value = sum_each<32, kItems>(sum);
    const int item = lane() / kLanesEach, r = item / kTokens, t = item % kTokens;
    if (r >= out_rows() || lane() % kLanesEach != 0) return;
    static_assert(Plan::kOwners == 2);
    const bool is_second = r >= plan.out_rows;
    const auto owner = static_cast<uint32_t>(warp() * Plan::kOwners + (is_second ? 1 : 0));
    const int row = r - (is_second ? plan.out_rows : 0);
    const float* to = floats(plan.out_parts_at) + (t * plan.out_rows + row) * Plan::kPartPitch + block;
    hopper::store_there(hopper::address_in_block(to, owner), value,
                        hopper::address_in_block(barrier(kOutParts), owner));
  }

  /// 16 lanes have a row that the block owns.
  __device__ void add_up_hidden() {
    const float* biases = layer(layer_).out_bias;
#pragma unroll
    for (int turn = 0; turn < kOwnTurns; ++turn) {
      const int item = turn * (Plan::kWorkers / 16) + half_warp(), r = item / kTokens, t = item % kTokens;
      if (__all_sync(kAllLanes, r >= owned_rows())) continue;
      const int own_row = min(r, owned_rows() - 1);
      const float bias = biases ? __ldg(biases + owned_row() + own_row) : 0.0f;
      const float part = floats(plan.out_parts_at)[(t * plan.out_rows + own_row) * Plan::kPartPitch + sub()];
      owned_[turn] += sum_lanes<16>(part) + bias;
      if (r < owned_rows() && sub() == 0) {
        store_word(p.hidden + t * plan.hidden + owned_row() + r, owned_[turn], number_);
      }
    }
  }
  __device__ void store_hidden() const {
#pragma unroll
    for (int turn = 0; turn < kOwnTurns; ++turn) {
      const int item = turn * (Plan::kWorkers / 16) + half_warp(), r = item / kTokens;
      const int row = r < owned_rows() && sub() == 0 ? row_of(item % kTokens) : -1;
      if (row >= 0) p.h[row * p.h_stride + owned_row() + r] = owned_[turn];
    }
  }

  const int in_row_, in_rows_;  ///< of the warp
  int layer_ = 0;
  uint32_t number_ = 0;  ///< of the layer, among all that ever ran
  Weights<kInRows, kAhead> in_;
  Weights<kXRows, 1> x_;
  Weights<kDtRows, 1> dt_;
  Weights<kOutRows, 1> out_;
  float owned_[kOwnTurns];
};

}  // namespace hxq::cuda::mamba_spread_parts
