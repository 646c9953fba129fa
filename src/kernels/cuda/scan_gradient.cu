// The gradient of the selective scan. A block has a run of tokens, each of its warps some of them, and takes the states
// one by one: of a state a lane keeps all its tokens in registers, and warps meet what the others' tokens do to it in
// shared memory.

#include <algorithm>
#include <utility>

#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_gradients.cuh"
#include "kernels/cuda/sequence_gradients.h"

namespace hxq::cuda {
namespace {

constexpr int kTokens = 8;  ///< of a warp
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRun = kWarps * kTokens;
constexpr int kOfLane = 2;  ///< channels, 32 apart: what is summed over channels is summed over these first
constexpr int kChannels = 32 * kOfLane;
constexpr int kJoined = 16;  ///< runs whose states are loaded together

/// What lies around a run: a state before it and its gradient behind it, of a block's channels. Pairs are of the two of
/// each lane.
struct Ends {
  float2 before[32], behind[32];
};

/// The runs of all channels in the workspace: [batch, runs, blocks]. Channels that are not there have zeros.
struct Parameters {
  ScanGradientArgs args;
  int runs;        ///< of a sequence
  int blocks;      ///< of channels
  Ends* ends;      // state_size of each: what a run makes of zeros, then what is around it
  float2* deltas;  // 32 of each: sums of delta
};

/// `sigmoid` within a few units in the last place, without a jump.
__device__ inline float fast_sigmoid(float x) { return __fdividef(1.0f, 1.0f + fast_exp2(-kLog2E * x)); }

__device__ inline int warp_of_block() { return static_cast<int>(threadIdx.x / 32); }
__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x % 32); }

/// Where a block's run lies, and the part of it that a lane has. What is not there is in the place of the last that is.
struct Place {
  int64_t block;      // in the workspace
  int64_t first_row;  // of the run
  int rows;           // of the run that are there
  int64_t channel;    // the lane's first
  int channels;       // of the lane that are there

  /// Its numbers take no registers from one use to another where it is made anew.
  __device__ explicit Place(const Parameters& p) {
    const int first = static_cast<int>(blockIdx.z) * kRun;
    block = (int64_t{blockIdx.y} * p.runs + blockIdx.z) * p.blocks + blockIdx.x;
    first_row = int64_t{blockIdx.y} * p.args.tokens + first;
    rows = min(kRun, p.args.tokens - first);
    const int64_t first_channel = int64_t{blockIdx.x} * kChannels + thread_of_block() % 32;
    channel = min(first_channel, p.args.channels - 1);
    channels = (first_channel < p.args.channels ? 1 : 0) + (first_channel + 32 < p.args.channels ? 1 : 0);
  }

  __device__ bool has_channel(int k) const { return k < channels; }
  __device__ bool has_token(int t) const { return warp_of_block() * kTokens + t < rows; }
  /// The token's row of the run.
  __device__ uint32_t row_of(int t) const {
    return static_cast<uint32_t>(min(warp_of_block() * kTokens + t, rows - 1));
  }
  __device__ int64_t channel_of(int k) const { return channel + (has_channel(k) ? 32 * k : 0); }
};

/// What a lane's tokens take of one of its channels.
struct Column {
  float bias, skip;
  float dt[kTokens], u[kTokens], z[kTokens], g[kTokens];

  __device__ Column(const ScanGradientArgs& p, const Place& at, int k) {
    const int64_t c = at.channel_of(k), first = at.first_row * p.channels + c;
    const float *first_dt = p.dt + first, *first_u = p.u + first, *first_g = p.g + first;
    const float* first_z = p.z + at.first_row * p.z_stride + c;
    bias = p.dt_bias ? p.dt_bias[c] : 0.0f;
    skip = p.d[c];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const uint32_t from = at.row_of(t) * static_cast<uint32_t>(p.channels);
      dt[t] = first_dt[from];
      u[t] = first_u[from];
      z[t] = first_z[at.row_of(t) * static_cast<uint32_t>(p.z_stride)];
      g[t] = first_g[from];
    }
  }
};

/// What a lane's tokens do to states, nothing where there are none.
struct Tokens {
  float delta[kOfLane][kTokens], delta_u[kOfLane][kTokens];
  float dp[kOfLane][kTokens];  // the gradient before the gate
  float total[kOfLane];        // of delta

  __device__ Tokens(const ScanGradientArgs& p, const Place& at, const Column (&columns)[kOfLane]) {
#pragma unroll
    for (int k = 0; k < kOfLane; ++k) {
      const Column& x = columns[k];
      total[k] = 0;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const bool exists = at.has_token(t) && at.has_channel(k);
        delta[k][t] = softplus(exists ? x.dt[t] + x.bias : -INFINITY);
        delta_u[k][t] = delta[k][t] * x.u[t];
        dp[k][t] = (exists ? x.g[t] : 0.0f) * x.z[t] * fast_sigmoid(x.z[t]);
        total[k] += delta[k][t];
      }
    }
  }
};

// ---- shared memory ----

/// Of a state.
struct State {
  float b[kRun], c[kRun];  // of the run's tokens; then their gradients
  union {
    struct {
      float2 a[32];
      Ends ends;
    } begins;
    float2 sums_of_a[kThreads];  // once all warps have begun
  };
  float for_banks[4];
};

extern __shared__ __align__(16) unsigned char shared[];  // State[state_size]

/// What each warp's tokens make of zeros of one state, forwards and backwards.
struct Meeting {
  float2 decay[kThreads], state[kThreads], carry[kThreads];
};

/// Calls body(n, i) for every state n and i below `count`; adjacent threads have adjacent states.
template <class Body>
__device__ inline void for_states(const ScanGradientArgs& p, int count, const Body& body) {
  const auto states = static_cast<int>(p.state_size);
  const int shift = 32 - __clz(states - 1);
  for (int i = static_cast<int>(threadIdx.x); i < count << shift; i += kThreads) {
    if (const int n = i & ((1 << shift) - 1); n < states) body(n, i >> shift);
  }
}

/// Starts to bring A, and B and C of the run's tokens.
__device__ inline void bring_coefficients(const ScanGradientArgs& p, const Place& at, State* states) {
  const float *b = p.b + at.first_row * p.bc_stride, *c = p.c + at.first_row * p.bc_stride;
  for_states(p, kRun, [&](int n, int t) {
    const uint32_t from = static_cast<uint32_t>(min(t, at.rows - 1)) * static_cast<uint32_t>(p.bc_stride);
    copy_async<4>(&states[n].b[t], b + from + n);
    copy_async<4>(&states[n].c[t], c + from + n);
  });
  for (int n = warp_of_block(); n < p.state_size; n += kWarps) {
    float2& to = states[n].begins.a[lane_of_warp()];
    copy_async<4>(&to.x, p.a + n * p.channels + at.channel_of(0));
    copy_async<4>(&to.y, p.a + n * p.channels + at.channel_of(1));
  }
}

/// The warp's tokens of B or C.
__device__ inline void load_tokens(const float* run, float (&to)[kTokens]) {
#pragma unroll
  for (int t = 0; t < kTokens; t += 4) {
    const float4 four = *reinterpret_cast<const float4*>(run + warp_of_block() * kTokens + t);
    to[t] = four.x, to[t + 1] = four.y, to[t + 2] = four.z, to[t + 3] = four.w;
  }
}

/// Works out the decays of a state, and tells the other warps what the tokens make of zeros.
__device__ inline void meet(const Tokens& tokens, const float (&a)[kOfLane], const State& of, Meeting& meeting,
                            float (&decay)[kOfLane][kTokens]) {
  float b[kTokens], c[kTokens], over_all[kOfLane], state[kOfLane] = {}, carry[kOfLane] = {};
  load_tokens(of.b, b);
  load_tokens(of.c, c);
#pragma unroll
  for (int k = 0; k < kOfLane; ++k) {
    const float rate = a[k] * kLog2E;
    over_all[k] = fast_exp2(tokens.total[k] * rate);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      decay[k][t] = fast_exp2(tokens.delta[k][t] * rate);
      state[k] = fmaf(decay[k][t], state[k], tokens.delta_u[k][t] * b[t]);
    }
#pragma unroll
    for (int t = kTokens - 1; t >= 0; --t) carry[k] = fmaf(tokens.dp[k][t], c[t], carry[k]) * decay[k][t];
  }
  meeting.decay[threadIdx.x] = make_float2(over_all[0], over_all[1]);
  meeting.state[threadIdx.x] = make_float2(state[0], state[1]);
  meeting.carry[threadIdx.x] = make_float2(carry[0], carry[1]);
}

/// Takes a state through warps before `end`, and its gradient back through those from `begin` on.
__device__ inline void join(const Meeting& meeting, int end, int begin, float (&state)[kOfLane],
                            float (&carry)[kOfLane]) {
  const int lane = lane_of_warp();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w >= end) continue;
    const float2 decay = meeting.decay[32 * w + lane], made = meeting.state[32 * w + lane];
    state[0] = fmaf(decay.x, state[0], made.x), state[1] = fmaf(decay.y, state[1], made.y);
  }
#pragma unroll
  for (int w = kWarps - 1; w >= 0; --w) {
    if (w < begin) continue;
    const float2 decay = meeting.decay[32 * w + lane], made = meeting.carry[32 * w + lane];
    carry[0] = fmaf(decay.x, carry[0], made.x), carry[1] = fmaf(decay.y, carry[1], made.y);
  }
}

// ---- the kernels ----

/// Zeros where sums over tokens or channels are to be made.
__device__ inline void clear_sums(const ScanGradientArgs& p, const Place& at) {
  const int64_t states = p.state_size;
  if (blockIdx.x == 0) {
    for (int64_t i = threadIdx.x; i < at.rows * states; i += kThreads) {
      p.db[at.first_row * states + i] = 0;
      p.dc[at.first_row * states + i] = 0;
    }
  }
  if (blockIdx.y > 0 || blockIdx.z > 0) return;
  const int64_t channel = int64_t{blockIdx.x} * kChannels, count = min(int64_t{kChannels}, p.channels - channel);
  for (int64_t i = threadIdx.x; i < count * states; i += kThreads) p.da_log[channel * states + i] = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) p.dd[channel + i] = p.ddt_bias[channel + i] = 0;
}

/// What every run makes of zeros, forwards and backwards.
__global__ void __launch_bounds__(kThreads) run_kernel(const __grid_constant__ Parameters p) {
  __shared__ Meeting meetings[2];
  __shared__ float2 totals[kWarps][32];
  const ScanGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const Place at(p);
  auto* states = reinterpret_cast<State*>(shared);
  const Column columns[kOfLane] = {{in, at, 0}, {in, at, 1}};
  bring_coefficients(in, at, states);
  end_copy_group();
  clear_sums(in, at);
  wait_for_copies<0>();
  const Tokens tokens(in, at, columns);
  const int warp = warp_of_block(), lane = lane_of_warp();
  totals[warp][lane] = make_float2(tokens.total[0], tokens.total[1]);
  __syncthreads();
  if (warp == 0) {
    float2 total = {};
    for (int w = 0; w < kWarps; ++w) total.x += totals[w][lane].x, total.y += totals[w][lane].y;
    p.deltas[at.block * 32 + lane] = total;
  }
  Ends* ends = p.ends + at.block * in.state_size;
  for (int n = 0; n < in.state_size; ++n) {
    const float2 rates = states[n].begins.a[lane];
    const float a[kOfLane] = {rates.x, rates.y};
    float decay[kOfLane][kTokens];
    meet(tokens, a, states[n], meetings[n % 2], decay);
    __syncthreads();
    if (n % kWarps != warp) continue;
    float state[kOfLane] = {}, carry[kOfLane] = {};
    join(meetings[n % 2], kWarps, 0, state, carry);
    ends[n].before[lane] = make_float2(state[0], state[1]);
    ends[n].behind[lane] = make_float2(carry[0], carry[1]);
  }
}

/// Joins the runs of a sequence: a thread has one state of one channel, forwards or backwards.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Parameters p) {
  const ScanGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const int64_t place = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (place >= int64_t{p.blocks} * kChannels) return;
  const bool backwards = blockIdx.z % 2 == 1;
  const int64_t block = place / kChannels, at = place % kChannels, n = blockIdx.y;
  const int64_t channel = min(block * kChannels + at / 2 + at % 2 * 32, in.channels - 1);
  const float rate = in.a[n * in.channels + channel] * kLog2E;
  const int64_t first = (int64_t{blockIdx.z / 2} * p.runs + (backwards ? p.runs - 1 : 0)) * p.blocks + block;
  const int64_t step = backwards ? -p.blocks : p.blocks;
  Ends& ends = p.ends[first * in.state_size + n];
  float* states = reinterpret_cast<float*>(backwards ? ends.behind : ends.before) + at;
  const float* deltas = reinterpret_cast<const float*>(p.deltas + first * 32) + at;
  const int64_t to_next = step * in.state_size * static_cast<int64_t>(sizeof(Ends) / sizeof(float));
  float state = 0;
  for (int run = 0; run < p.runs; run += kJoined) {
    float made[kJoined], delta[kJoined];
    float* to = states;
#pragma unroll
    for (int i = 0; i < kJoined; ++i) {
      if (run + i >= p.runs) continue;
      made[i] = *states;
      delta[i] = *deltas;
      states += to_next;
      deltas += step * kChannels;
    }
#pragma unroll
    for (int i = 0; i < kJoined; ++i) {
      if (run + i >= p.runs) continue;
      *to = state;
      to += to_next;
      state = fmaf(fast_exp2(rate * delta[i]), state, made[i]);
    }
  }
}

/// Sums over states, of a lane's tokens.
struct Sums {
  float ddelta[kOfLane][kTokens] = {};    // through the decays
  float dstate_b[kOfLane][kTokens] = {};  // gradients of states times B
  float output[kOfLane][kTokens] = {};    // states times C
};

/// Writes the gradients of a lane's tokens of one of its channels.
__device__ inline void finish(const ScanGradientArgs& p, const Place& at, int k, const Column& x, const Tokens& tokens,
                              const Sums& sums) {
  const int64_t c = at.channel_of(k), first = at.first_row * p.channels + c;
  float *first_du = p.du + first, *first_ddt = p.ddt + first, *first_dz = p.dz + first;
  float dd = 0, dbias = 0;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float u = x.u[t], z = x.z[t], gate = fast_sigmoid(z), dp = tokens.dp[k][t];
    const float ds = fmaf(sums.dstate_b[k][t], u, sums.ddelta[k][t]) * fast_sigmoid(x.dt[t] + x.bias);
    dd = fmaf(dp, u, dd);
    dbias += ds;
    if (!at.has_token(t) || !at.has_channel(k)) continue;
    const uint32_t to = at.row_of(t) * static_cast<uint32_t>(p.channels);
    first_du[to] = fmaf(dp, x.skip, sums.dstate_b[k][t] * tokens.delta[k][t]);
    first_ddt[to] = ds;
    first_dz[to] = x.g[t] * fmaf(x.skip, u, sums.output[k][t]) * gate * fmaf(z, 1.0f - gate, 1.0f);
  }
  if (!at.has_channel(k)) return;
  atomicAdd(p.dd + c, dd);
  atomicAdd(p.ddt_bias + c, dbias);
}

/// Goes through a lane's tokens of a state and back. `of_places` gets the gradients of B of every token, then of C.
__device__ inline void go_through(const Tokens& tokens, const State& of, const float (&a)[kOfLane],
                                  const float (&decay)[kOfLane][kTokens], const float (&before)[kOfLane],
                                  float (&carry)[kOfLane], Sums& sums, float (&of_places)[2 * kTokens],
                                  float (&da)[kOfLane]) {
  float b[kTokens], c[kTokens];
  load_tokens(of.b, b);
  load_tokens(of.c, c);
#pragma unroll
  for (int k = 0; k < kOfLane; ++k) {
    float h[kTokens + 1] = {before[k]};
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      h[t + 1] = fmaf(decay[k][t], h[t], tokens.delta_u[k][t] * b[t]);
      sums.output[k][t] = fmaf(h[t + 1], c[t], sums.output[k][t]);
      of_places[kTokens + t] = fmaf(tokens.dp[k][t], h[t + 1], of_places[kTokens + t]);
    }
#pragma unroll
    for (int t = kTokens - 1; t >= 0; --t) {
      const float dh = fmaf(tokens.dp[k][t], c[t], carry[k]);
      carry[k] = dh * decay[k][t];
      const float through_decay = carry[k] * h[t];
      sums.ddelta[k][t] = fmaf(through_decay, a[k], sums.ddelta[k][t]);
      sums.dstate_b[k][t] = fmaf(dh, b[t], sums.dstate_b[k][t]);
      da[k] = fmaf(through_decay, tokens.delta[k][t], da[k]);
      of_places[t] = fmaf(dh, tokens.delta_u[k][t], of_places[t]);
    }
  }
}

/// Adds a run's gradients of A, B and C to those of others.
__device__ inline void add_gradients(const ScanGradientArgs& p, const Place& at, const State* states) {
  const auto state_size = static_cast<int>(p.state_size);
  float *db = p.db + at.first_row * state_size, *dc = p.dc + at.first_row * state_size;
  for_states(p, at.rows, [&](int n, int t) {
    atomicAdd(db + t * state_size + n, states[n].b[t]);
    atomicAdd(dc + t * state_size + n, states[n].c[t]);
  });
  const int64_t channel = int64_t{blockIdx.x} * kChannels, count = min(int64_t{kChannels}, p.channels - channel);
  float* da_log = p.da_log + channel * state_size;
  for_states(p, static_cast<int>(count), [&](int n, int i) {
    const float* of_warps = reinterpret_cast<const float*>(states[n].sums_of_a) + i % 32 * 2 + i / 32;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of_warps[w * kChannels];
    atomicAdd(da_log + i * state_size + n, sum);
  });
}

/// All gradients of a run. With its registers three blocks fill a multiprocessor.
__global__ void __launch_bounds__(kThreads, 3) gradient_kernel(const __grid_constant__ Parameters p) {
  __shared__ Meeting meetings[2];
  const ScanGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const Place at(p);
  auto* const states = reinterpret_cast<State*>(shared);
  const auto state_size = static_cast<int>(in.state_size);
  const int warp = warp_of_block(), lane = lane_of_warp();
  const Column columns[kOfLane] = {{in, at, 0}, {in, at, 1}};
  bring_coefficients(in, at, states);
  for (int n = warp; n < state_size; n += kWarps) {
    static_assert(sizeof(Ends) == 32 * sizeof(uint4));
    copy_async<16>(reinterpret_cast<uint4*>(&states[n].begins.ends) + lane,
                   reinterpret_cast<const uint4*>(p.ends + at.block * state_size + n) + lane);
  }
  end_copy_group();
  wait_for_copies<0>();
  const Tokens tokens(in, at, columns);
  Sums sums;
  __syncthreads();
  for (int n = 0; n < state_size; ++n) {
    State& of = states[n];
    const float2 rates = of.begins.a[lane], start = of.begins.ends.before[lane], end = of.begins.ends.behind[lane];
    const float a[kOfLane] = {rates.x, rates.y};
    float before[kOfLane] = {start.x, start.y}, carry[kOfLane] = {end.x, end.y};
    float decay[kOfLane][kTokens], of_places[2 * kTokens] = {}, da[kOfLane] = {};
    meet(tokens, a, of, meetings[n % 2], decay);
    __syncthreads();
    join(meetings[n % 2], warp, warp + 1, before, carry);
    go_through(tokens, of, a, decay, before, carry, sums, of_places, da);
    of.sums_of_a[threadIdx.x] = make_float2(da[0] * a[0], da[1] * a[1]);
    const float sum = sum_each<32, 2 * kTokens>(of_places);
    __syncwarp();  // no lane needs B and C any more
    const uint32_t thread = thread_of_block(), place = thread % 32 / 2;
    if (thread % 2 == 0) (place < kTokens ? of.b : of.c)[thread / 32 * kTokens + place % kTokens] = sum;
  }
  const Place again(p);
  const Column first(in, again, 0), second(in, again, 1);
  __syncthreads();
  add_gradients(in, at, states);
  finish(in, again, 0, first, tokens, sums);
  finish(in, again, 1, second, tokens, sums);
}

int runs_of(const ScanGradientArgs& args) { return ceil_div(args.tokens, kRun); }
int blocks_of(const ScanGradientArgs& args) { return static_cast<int>(ceil_div<int64_t>(args.channels, kChannels)); }

}  // namespace

size_t scan_gradient_workspace(const ScanGradientArgs& args) noexcept {
  const size_t blocks = static_cast<size_t>(args.batch) * runs_of(args) * blocks_of(args);
  return blocks * (static_cast<size_t>(args.state_size) * sizeof(Ends) + 32 * sizeof(float2));
}

Status selective_scan_gradient(const ScanGradientArgs& args, Stream stream) noexcept {
  if (args.state_size < 1 || args.state_size > kMaxScanState) return Status::invalid_value;
  if (args.workspace.bytes < scan_gradient_workspace(args)) return Status::invalid_value;
  // Offsets of a run's rows have 32 bits.
  if (std::max({args.channels, args.z_stride, args.bc_stride}) > UINT32_MAX / kRun) return Status::invalid_value;
  const int64_t size = args.state_size * args.channels, rows = int64_t{args.batch} * args.tokens;
  if (rows == 0 || args.channels == 0) {
    for (const auto& [memory, count] : {std::pair{args.db, rows * args.state_size},
                                        {args.dc, rows * args.state_size},
                                        {args.da_log, size},
                                        {args.dd, args.channels},
                                        {args.ddt_bias, args.channels}}) {
      if (const Status status = clear_floats(memory, count, stream); status != Status::ok) return status;
    }
    return Status::ok;
  }
  Parameters p{
      .args = args, .runs = runs_of(args), .blocks = blocks_of(args), .ends = static_cast<Ends*>(args.workspace.data)};
  p.deltas = reinterpret_cast<float2*>(p.ends + int64_t{args.batch} * p.runs * p.blocks * args.state_size);
  const auto batch = static_cast<unsigned>(args.batch), states = static_cast<unsigned>(args.state_size);
  const LaunchShape by_run{.grid = dim3(static_cast<unsigned>(p.blocks), batch, static_cast<unsigned>(p.runs)),
                           .block = dim3(kThreads),
                           .shared_bytes = states * sizeof(State)};
  Status status = launch(run_kernel, by_run, stream, p);
  if (status != Status::ok) return status;
  const auto joining = static_cast<unsigned>(ceil_div<int64_t>(args.channels, kThreads));
  status = launch(join_kernel, {.grid = dim3(joining, states, 2 * batch), .block = dim3(kThreads)}, stream, p);
  if (status != Status::ok) return status;
  return launch(gradient_kernel, by_run, stream, p);
}

}  // namespace hxq::cuda
