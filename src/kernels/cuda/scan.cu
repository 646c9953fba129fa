// Selective scan. A thread has one channel of one run of tokens and up to kStates states in registers.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 64;
constexpr int kRun = 64;   ///< tokens of a run; segments that are no longer take one pass
constexpr int kTile = 16;  ///< tokens whose B and C are in shared memory

struct Parameters {
  ScanArgs args;
  int runs;          ///< of the longest segment
  float* run_state;  // [count, runs, state_size, channels]: what a run makes of zeros, then the state it starts from
  float* run_delta;  // [count, runs, channels]: sums of delta
};

struct Place {
  Segment segment;
  int sequence, run, begin, end;
  int64_t channel;
};

__device__ inline Place place_of(const Parameters& p) {
  Place at;
  at.sequence = static_cast<int>(blockIdx.y);
  at.segment = p.args.batch.segments[at.sequence];
  at.run = static_cast<int>(blockIdx.z);
  at.begin = at.run * kRun;
  at.end = min(at.begin + kRun, at.segment.rows);
  at.channel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  return at;
}

/// Goes over a run's tokens from state h; with kOutput it writes y. Returns the sum of delta.
template <int kStates, bool kOutput>
__device__ inline float go_over(const ScanArgs& p, const Place& at, float (&h)[kStates]) {
  __shared__ float shared_b[kTile][kStates], shared_c[kTile][kStates];
  const bool is_there = at.channel < p.channels;
  const int64_t c = is_there ? at.channel : 0;
  const auto states = static_cast<int>(p.state_size);
  float a[kStates];
#pragma unroll
  for (int n = 0; n < kStates; ++n) a[n] = n < states ? p.a[n * p.channels + c] * 1.44269504f : 0.0f;  // for exp2
  const float bias = p.dt_bias ? p.dt_bias[c] : 0.0f;
  const float skip = p.d[c];
  float total = 0;
  for (int first = at.begin; first < at.end; first += kTile) {
    const int tokens = min(kTile, at.end - first);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tokens * kStates; i += kThreads) {
      const int t = i / kStates, n = i % kStates;
      const int64_t row = at.segment.first_row + first + t;
      shared_b[t][n] = n < states ? load_at(p.b, row, n) : 0.0f;
      if (kOutput) shared_c[t][n] = n < states ? load_at(p.c, row, n) : 0.0f;
    }
    __syncthreads();
    for (int t = 0; t < tokens; ++t) {
      const int64_t row = at.segment.first_row + first + t;
      const float delta = softplus(load_at(p.dt, row, c) + bias);
      const float u = load_at(p.u, row, c);
      const float delta_u = delta * u;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        h[n] = fmaf(fast_exp2(delta * a[n]), h[n], delta_u * shared_b[t][n]);
        if (kOutput) sum = fmaf(h[n], shared_c[t][n], sum);
      }
      total += delta;
      if (kOutput && is_there) store_at(p.y, row, c, fmaf(skip, u, sum) * silu(load_at(p.z, row, c)));
    }
  }
  return total;
}

__device__ inline float* run_state(const Parameters& p, const Place& at, int run) {
  return p.run_state + (int64_t{at.sequence} * p.runs + run) * p.args.state_size * p.args.channels + at.channel;
}

/// What every run but the last makes of a state of zeros.
template <int kStates>
__global__ void __launch_bounds__(kThreads) run_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const Place at = place_of(p);
  if (at.end - at.begin < kRun || at.end == at.segment.rows) return;
  float h[kStates] = {};
  const float total = go_over<kStates, false>(p.args, at, h);
  if (at.channel >= p.args.channels) return;
  float* state = run_state(p, at, at.run);
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    if (n < p.args.state_size) state[n * p.args.channels] = h[n];
  }
  p.run_delta[(int64_t{at.sequence} * p.runs + at.run) * p.args.channels + at.channel] = total;
}

/// States between runs: a thread has one state of one channel and goes through the runs.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const Place at = place_of(p);
  const auto n = static_cast<int>(blockIdx.z);
  if (at.channel >= p.args.channels) return;
  const int runs = (at.segment.rows + kRun - 1) / kRun;
  const float a = p.args.a[n * p.args.channels + at.channel];
  float h = p.args.states[at.sequence][n * p.args.channels + at.channel];
  for (int run = 0; run + 1 < runs; ++run) {
    float* state = run_state(p, at, run) + n * p.args.channels;
    const float made = *state;
    *state = h;
    h = fmaf(expf(a * p.run_delta[(int64_t{at.sequence} * p.runs + run) * p.args.channels + at.channel]), h, made);
  }
  if (runs > 1) run_state(p, at, runs - 1)[n * p.args.channels] = h;
}

/// Outputs; the last run leaves the sequence's state behind.
template <int kStates>
__global__ void __launch_bounds__(kThreads) output_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const Place at = place_of(p);
  if (at.begin >= at.segment.rows) return;
  const bool is_there = at.channel < p.args.channels;
  float* state = p.args.states[at.sequence] + at.channel;
  const float* from = at.segment.rows > kRun ? run_state(p, at, at.run) : state;
  float h[kStates];
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    h[n] = is_there && n < p.args.state_size ? from[n * p.args.channels] : 0.0f;
  }
  go_over<kStates, true>(p.args, at, h);
  if (!is_there || at.end != at.segment.rows) return;
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    if (n < p.args.state_size) state[n * p.args.channels] = h[n];
  }
}

template <int kStates>
Status launch_scan(const Parameters& p, Stream stream) {
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.args.channels, kThreads));
  const auto count = static_cast<unsigned>(p.args.batch.count);
  const LaunchShape by_run{.grid = dim3(blocks, count, static_cast<unsigned>(p.runs)), .block = dim3(kThreads)};
  const LaunchShape by_state{.grid = dim3(blocks, count, static_cast<unsigned>(p.args.state_size)),
                             .block = dim3(kThreads)};
  if (p.runs > 1) {
    if (const Status status = launch(run_kernel<kStates>, by_run, stream, p); status != Status::ok) return status;
    if (const Status status = launch(join_kernel, by_state, stream, p); status != Status::ok) return status;
  }
  return launch(output_kernel<kStates>, by_run, stream, p);
}

int runs_of(int32_t max_rows) { return max_rows <= 0 ? 0 : (max_rows + kRun - 1) / kRun; }

}  // namespace

size_t scan_workspace(int32_t sequences, int32_t max_rows, int64_t channels, int64_t state_size) noexcept {
  const int runs = runs_of(max_rows);
  return runs > 1
             ? static_cast<size_t>(sequences) * static_cast<size_t>(runs * channels * (state_size + 1)) * sizeof(float)
             : 0;
}

Status selective_scan(const ScanArgs& args, Stream stream) noexcept {
  if (args.state_size < 1 || args.state_size > kMaxScanState) return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0 || args.channels == 0) return Status::ok;
  if (args.workspace.bytes < scan_workspace(args.batch.count, args.batch.max_rows, args.channels, args.state_size)) {
    return Status::invalid_value;
  }
  Parameters p{
      .args = args, .runs = runs_of(args.batch.max_rows), .run_state = static_cast<float*>(args.workspace.data)};
  p.run_delta = p.run_state + int64_t{args.batch.count} * p.runs * args.channels * args.state_size;
  return args.state_size <= 16 ? launch_scan<16>(p, stream) : launch_scan<64>(p, stream);
}

}  // namespace hxq::cuda
