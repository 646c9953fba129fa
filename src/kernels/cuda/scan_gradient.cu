// The gradient of the selective scan. A thread has one channel of one run of tokens, and takes the states one by one:
// of a state it keeps every token's in registers.

#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_gradients.cuh"
#include "kernels/cuda/sequence_gradients.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kRun = 16;    ///< tokens of a run
constexpr int kJoined = 8;  ///< runs whose states are loaded together

struct Parameters {
  ScanGradientArgs args;
  int runs;       ///< of a sequence
  float* start;   // [batch * runs, state_size, channels]: what a run makes of a state of zeros, then the one before it
  float* carry;   // the same size: what a run makes of a gradient of zeros behind it, then the one behind it
  float* deltas;  // [batch * runs, channels]: sums of delta
  float* da;      // [state_size, channels]
};

/// What a thread's tokens are, all zero where there are none: they then change no state and no sum.
struct Tokens {
  float delta[kRun], delta_u[kRun], dp[kRun];  // dp: the gradient before the gate

  __device__ Tokens(const ScanGradientArgs& p, int64_t row, int count, int64_t c) {
    const float bias = p.dt_bias && count > 0 ? p.dt_bias[c] : 0.0f;
#pragma unroll
    for (int t = 0; t < kRun; ++t) {
      const bool exists = t < count;
      const int64_t at = (row + t) * p.channels + c;
      delta[t] = exists ? softplus(p.dt[at] + bias) : 0.0f;
      delta_u[t] = exists ? delta[t] * p.u[at] : 0.0f;
      const float z = exists ? p.z[(row + t) * p.z_stride + c] : 0.0f;
      dp[t] = exists ? p.g[at] * z * sigmoid(z) : 0.0f;
    }
  }
};

struct Place {
  int64_t channel, slot, row;  // row: of the run's first token
  int count;                   // tokens of the run
  bool is_there;

  __device__ explicit Place(const Parameters& p) {
    channel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    slot = int64_t{blockIdx.y} * p.runs + blockIdx.z;
    const int first = static_cast<int>(blockIdx.z) * kRun;
    row = int64_t{blockIdx.y} * p.args.tokens + first;
    count = min(kRun, p.args.tokens - first);
    is_there = channel < p.args.channels;
  }

  /// Of an array [slots, state_size, channels].
  __device__ int64_t state_at(const ScanGradientArgs& p, int64_t n) const {
    return (slot * p.state_size + n) * p.channels + channel;
  }
};

/// B and C of the run's tokens, [state_size, kRun] each; zeros where there are none.
__device__ inline void load_coefficients(const ScanGradientArgs& p, const Place& at, float* b, float* c) {
  const auto n = static_cast<int>(p.state_size);
  for (int i = static_cast<int>(threadIdx.x); i < kRun * n; i += kThreads) {
    const int64_t from = (at.row + i / n) * p.bc_stride + i % n;
    const int to = i % n * kRun + i / n;
    b[to] = i / n < at.count ? p.b[from] : 0.0f;
    c[to] = i / n < at.count ? p.c[from] : 0.0f;
  }
  __syncthreads();
}

extern __shared__ __align__(16) float shared[];

/// What every run makes of zeros, forwards and backwards.
__global__ void __launch_bounds__(kThreads) run_kernel(const __grid_constant__ Parameters p) {
  const ScanGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const Place at(p);
  const auto states = static_cast<int>(in.state_size);
  float *b = shared, *c = shared + kRun * states;
  load_coefficients(in, at, b, c);
  if (!at.is_there) return;
  const Tokens tokens(in, at.row, at.count, at.channel);
  float total = 0;
#pragma unroll
  for (int t = 0; t < kRun; ++t) total += tokens.delta[t];
  p.deltas[at.slot * in.channels + at.channel] = total;
  for (int n = 0; n < states; ++n) {
    const float a = in.a[n * in.channels + at.channel] * kLog2E;
    float decay[kRun], h = 0, carry = 0;
#pragma unroll
    for (int t = 0; t < kRun; ++t) {
      decay[t] = fast_exp2(tokens.delta[t] * a);
      h = fmaf(decay[t], h, tokens.delta_u[t] * b[n * kRun + t]);
    }
#pragma unroll
    for (int t = kRun - 1; t >= 0; --t) carry = fmaf(tokens.dp[t], c[n * kRun + t], carry) * decay[t];
    p.start[at.state_at(in, n)] = h;
    p.carry[at.state_at(in, n)] = carry;
  }
}

/// Joins the runs of a sequence: a thread has one state of one channel, forwards or backwards.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Parameters p) {
  const ScanGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const int64_t channel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (channel >= in.channels) return;
  const bool backwards = blockIdx.z % 2 == 1;
  const int64_t sequence = blockIdx.z / 2, n = blockIdx.y;
  float* states = backwards ? p.carry : p.start;
  const float a = in.a[n * in.channels + channel];
  const auto slot_of = [&](int run) { return sequence * p.runs + (backwards ? p.runs - 1 - run : run); };
  float state = 0;
  for (int first = 0; first < p.runs; first += kJoined) {
    float made[kJoined] = {}, delta[kJoined] = {};
#pragma unroll
    for (int i = 0; i < kJoined; ++i) {
      if (first + i >= p.runs) continue;
      made[i] = states[(slot_of(first + i) * in.state_size + n) * in.channels + channel];
      delta[i] = p.deltas[slot_of(first + i) * in.channels + channel];
    }
#pragma unroll
    for (int i = 0; i < kJoined; ++i) {
      if (first + i >= p.runs) continue;
      states[(slot_of(first + i) * in.state_size + n) * in.channels + channel] = state;
      state = fmaf(expf(a * delta[i]), state, made[i]);
    }
  }
}

/// All gradients of a run.
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ Parameters p) {
  const ScanGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const Place at(p);
  const auto states = static_cast<int>(in.state_size);
  float *b = shared, *c = shared + kRun * states;
  float* sums = c + kRun * states;  // [kWarps, states, 2, kRun]: of dB, then dC
  load_coefficients(in, at, b, c);
  const int count = at.is_there ? at.count : 0;
  const int64_t channel = at.is_there ? at.channel : 0;
  const Tokens tokens(in, at.row, count, channel);
  const auto warp = static_cast<int>(threadIdx.x / 32), place = place_of_lane();
  float ddelta[kRun] = {}, dstate_b[kRun] = {}, output[kRun] = {};
  for (int n = 0; n < states; ++n) {
    const float a = in.a[n * in.channels + channel];
    float decay[kRun], after[kRun];
    const float start = at.is_there ? p.start[at.state_at(in, n)] : 0.0f;
    float carry = at.is_there ? p.carry[at.state_at(in, n)] : 0.0f;
    float h = start;
#pragma unroll
    for (int t = 0; t < kRun; ++t) {
      decay[t] = fast_exp2(tokens.delta[t] * (a * kLog2E));
      h = fmaf(decay[t], h, tokens.delta_u[t] * b[n * kRun + t]);
      after[t] = h;
    }
    float da = 0, of_places[4][kRun / 2];  // for dB of early and late tokens, then for dC
#pragma unroll
    for (int t = kRun - 1; t >= 0; --t) {
      const float from_b = b[n * kRun + t], from_c = c[n * kRun + t];
      output[t] = fmaf(after[t], from_c, output[t]);
      const float dh = fmaf(tokens.dp[t], from_c, carry);
      const float before = t > 0 ? after[t > 0 ? t - 1 : 0] : start;
      carry = dh * decay[t];
      const float through_decay = carry * before;
      ddelta[t] = fmaf(through_decay, a, ddelta[t]);
      dstate_b[t] = fmaf(dh, from_b, dstate_b[t]);
      da = fmaf(through_decay, tokens.delta[t], da);
      of_places[t / 8][t % 8] = dh * tokens.delta_u[t];
      of_places[2 + t / 8][t % 8] = tokens.dp[t] * after[t];
    }
    sums[(warp * states + n) * 32 + place] = sum_places(of_places);
    if (at.is_there) atomicAdd(p.da + n * in.channels + channel, da);
  }
  if (at.is_there) {
    const float skip = in.d[channel], bias = in.dt_bias ? in.dt_bias[channel] : 0.0f;
    float dd = 0, dbias = 0;
#pragma unroll
    for (int t = 0; t < kRun; ++t) {
      if (t >= count) continue;
      const int64_t to = (at.row + t) * in.channels + channel;
      const float z = in.z[(at.row + t) * in.z_stride + channel], gate = sigmoid(z);
      const float u = in.u[to], dp = tokens.dp[t];
      const float ds = fmaf(dstate_b[t], u, ddelta[t]) * sigmoid(in.dt[to] + bias);
      in.du[to] = fmaf(dp, skip, dstate_b[t] * tokens.delta[t]);
      in.ddt[to] = ds;
      in.dz[to] = in.g[to] * fmaf(skip, u, output[t]) * gate * fmaf(z, 1.0f - gate, 1.0f);
      dd = fmaf(dp, u, dd);
      dbias += ds;
    }
    atomicAdd(in.dd + channel, dd);
    atomicAdd(in.ddt_bias + channel, dbias);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < states * 32; i += kThreads) {
    const int t = i % kRun, n = i / 32;
    if (t >= at.count) continue;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * states * 32 + i];
    atomicAdd((i % 32 < kRun ? in.db : in.dc) + (at.row + t) * in.state_size + n, sum);
  }
}

/// da_log[c, n] = da[n, c] a[n, c]
__global__ void __launch_bounds__(kThreads) through_log_kernel(const __grid_constant__ Parameters p) {
  const ScanGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= in.channels * in.state_size) return;
  const int64_t from = i % in.state_size * in.channels + i / in.state_size;
  in.da_log[i] = p.da[from] * in.a[from];
}

int runs_of(const ScanGradientArgs& args) { return ceil_div(args.tokens, kRun); }

}  // namespace

size_t scan_gradient_workspace(const ScanGradientArgs& args) noexcept {
  const int64_t slots = int64_t{args.batch} * runs_of(args);
  return static_cast<size_t>((slots * (2 * args.state_size + 1) + args.state_size) * args.channels) * sizeof(float);
}

Status selective_scan_gradient(const ScanGradientArgs& args, Stream stream) noexcept {
  if (args.state_size < 1 || args.state_size > kMaxScanState) return Status::invalid_value;
  if (args.workspace.bytes < scan_gradient_workspace(args)) return Status::invalid_value;
  const int64_t size = args.state_size * args.channels, rows = int64_t{args.batch} * args.tokens;
  Parameters p{.args = args, .runs = runs_of(args), .start = static_cast<float*>(args.workspace.data)};
  p.carry = p.start + args.batch * p.runs * size;
  p.deltas = p.carry + args.batch * p.runs * size;
  p.da = p.deltas + args.batch * p.runs * args.channels;
  const struct {
    float* memory;
    int64_t count;
  } summed[] = {{args.db, rows * args.state_size},
                {args.dc, rows * args.state_size},
                {args.dd, args.channels},
                {args.ddt_bias, args.channels},
                {p.da, size}};
  for (const auto& [memory, count] : summed) {
    if (const Status status = clear_floats(memory, count, stream); status != Status::ok) return status;
  }
  if (rows == 0 || args.channels == 0) return clear_floats(args.da_log, size, stream);
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(args.channels, kThreads));
  const auto batch = static_cast<unsigned>(args.batch), states = static_cast<unsigned>(args.state_size);
  const size_t coefficients = 2 * kRun * states * sizeof(float);
  LaunchShape by_run{.grid = dim3(blocks, batch, static_cast<unsigned>(p.runs)),
                     .block = dim3(kThreads),
                     .shared_bytes = coefficients};
  Status status = launch(run_kernel, by_run, stream, p);
  if (status != Status::ok) return status;
  status = launch(join_kernel, {.grid = dim3(blocks, states, 2 * batch), .block = dim3(kThreads)}, stream, p);
  if (status != Status::ok) return status;
  by_run.shared_bytes = coefficients + kWarps * 32 * states * sizeof(float);
  status = launch(gradient_kernel, by_run, stream, p);
  if (status != Status::ok) return status;
  return launch(through_log_kernel,
                {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(size, kThreads))), .block = dim3(kThreads)},
                stream, p);
}

}  // namespace hxq::cuda
