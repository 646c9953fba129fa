// Selective scan. A thread has one channel of one run of tokens and its states in registers; the inputs of the next
// tokens travel while those at hand are used.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/runs.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 64;
constexpr int kRun = 32;    ///< tokens of a run; segments that are no longer take one pass
constexpr int kAhead = 4;   ///< tokens whose inputs are loaded together
constexpr int kJoined = 8;  ///< runs whose states are loaded together

struct Parameters {
  ScanArgs args;
  int runs;          ///< of the longest segment
  float* run_state;  // [slots, state_size, channels]: what a run makes of zeros, then the state it starts from
  float* run_delta;  // [slots, channels]: sums of delta
};

struct Place {
  RowRange segment;
  int sequence, run, begin, end;
  int64_t channel;

  __device__ int rows() const { return segment.end - segment.begin; }
};

__device__ inline Place place_of(const Parameters& p) {
  Place at;
  at.sequence = static_cast<int>(blockIdx.y);
  at.segment = p.args.batch.segments[at.sequence];
  at.run = static_cast<int>(blockIdx.z);
  at.begin = at.run * kRun;
  at.end = min(at.begin + kRun, at.rows());
  at.channel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  return at;
}

/// kF32: all activations are.
template <bool kF32>
__device__ inline float load_input(const Input& x, int64_t row, int64_t col) {
  return kF32 ? static_cast<const float*>(x.data)[row * x.stride + col] : load_at(x, row, col);
}

/// B and C of a run's tokens.
template <int kStates>
struct Shared {
  float b[kRun][kStates], c[kRun][kStates];
};

/// Blocks of a multiprocessor: all runs of a long prompt have room at once.
constexpr int blocks_for(int states) { return states <= 16 ? 12 : 1; }

/// Goes over a run's tokens; with kOutput it writes y. Made before the kernels before this one have finished.
template <int kStates, bool kOutput, bool kF32>
class Worker {
 public:
  __device__ Worker(const ScanArgs& p, const Place& at)
      : p_(p), at_(at), is_there_(at.channel < p.channels), c_(is_there_ ? at.channel : 0) {
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      a_[n] = n < p.state_size ? __ldg(p.a + n * p.channels + c_) * kLog2E : 0.0f;
    }
    bias_ = p.dt_bias ? __ldg(p.dt_bias + c_) : 0.0f;
    skip_ = __ldg(p.d + c_);
  }

  /// From state h, which it advances. Returns the sum of delta.
  __device__ float run(float (&h)[kStates], Shared<kStates>& shared) const {
    Token now[kAhead], next[kAhead];
    load(now, at_.begin);
    load_coefficients(shared);
    __syncthreads();
    float total = 0;
    for (int first = at_.begin; first < at_.end; first += kAhead) {
      load(next, first + kAhead);
#pragma unroll
      for (int t = 0; t < kAhead; ++t) {
        if (first + t < at_.end) total += step(h, now[t], first + t, shared);
      }
#pragma unroll
      for (int t = 0; t < kAhead; ++t) now[t] = next[t];
    }
    return total;
  }

 private:
  struct Token {
    float dt, u, z;
  };

  __device__ void load(Token (&tokens)[kAhead], int first) const {
#pragma unroll
    for (int t = 0; t < kAhead; ++t) {
      if (first + t >= at_.end) continue;
      const int64_t row = at_.segment.begin + first + t;
      tokens[t].dt = load_input<kF32>(p_.dt, row, c_);
      tokens[t].u = load_input<kF32>(p_.u, row, c_);
      if (kOutput) tokens[t].z = load_input<kF32>(p_.z, row, c_);
    }
  }

  __device__ void load_coefficients(Shared<kStates>& shared) const {
    for (int i = static_cast<int>(threadIdx.x); i < (at_.end - at_.begin) * kStates; i += kThreads) {
      const int t = i / kStates, n = i % kStates;
      const int64_t row = at_.segment.begin + at_.begin + t;
      shared.b[t][n] = n < p_.state_size ? load_input<kF32>(p_.b, row, n) : 0.0f;
      if (kOutput) shared.c[t][n] = n < p_.state_size ? load_input<kF32>(p_.c, row, n) : 0.0f;
    }
  }

  __device__ float step(float (&h)[kStates], const Token& token, int t, const Shared<kStates>& shared) const {
    const float delta = softplus(token.dt + bias_);
    const float delta_u = delta * token.u;
    const float* b = shared.b[t - at_.begin];
    const float* c = shared.c[t - at_.begin];
    float sum[2] = {};
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      h[n] = fmaf(fast_exp2(delta * a_[n]), h[n], delta_u * b[n]);
      if (kOutput) sum[n % 2] = fmaf(h[n], c[n], sum[n % 2]);
    }
    if (kOutput && is_there_) {
      store_at(p_.y, at_.segment.begin + t, c_, fmaf(skip_, token.u, sum[0] + sum[1]) * silu(token.z));
    }
    return delta;
  }

  const ScanArgs& p_;
  const Place& at_;
  const bool is_there_;
  const int64_t c_;
  float a_[kStates];
  float bias_, skip_;
};

__device__ inline int64_t slot_of(const Place& at, int run) { return slot_of_run(at.segment, at.sequence, run, kRun); }

__device__ inline float* run_state(const Parameters& p, const Place& at, int run) {
  return p.run_state + slot_of(at, run) * p.args.state_size * p.args.channels + at.channel;
}

__device__ inline float* run_delta(const Parameters& p, const Place& at, int run) {
  return p.run_delta + slot_of(at, run) * p.args.channels + at.channel;
}

/// What every run but the last makes of a state of zeros.
template <int kStates, bool kF32>
__global__ void __launch_bounds__(kThreads, blocks_for(kStates)) run_kernel(const __grid_constant__ Parameters p) {
  __shared__ Shared<kStates> shared;
  let_successors_begin();
  const Place at = place_of(p);
  const Worker<kStates, false, kF32> worker(p.args, at);
  wait_for_predecessors();
  if (at.end - at.begin < kRun || at.end == at.rows()) return;
  float h[kStates] = {};
  const float total = worker.run(h, shared);
  if (at.channel >= p.args.channels) return;
  float* state = run_state(p, at, at.run);
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    if (n < p.args.state_size) state[n * p.args.channels] = h[n];
  }
  *run_delta(p, at, at.run) = total;
}

/// States between runs: a thread has one state of one channel and goes through the runs.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  const Place at = place_of(p);
  const auto n = static_cast<int>(blockIdx.z);
  const bool is_there = at.channel < p.args.channels;
  const float a = is_there ? p.args.a[n * p.args.channels + at.channel] : 0.0f;
  wait_for_predecessors();
  const int runs = (at.rows() + kRun - 1) / kRun;
  if (!is_there || runs <= 1) return;
  float h = static_cast<const float*>(p.args.states[at.sequence])[n * p.args.channels + at.channel];
  for (int first = 0; first < runs; first += kJoined) {
    float made[kJoined] = {}, delta[kJoined] = {};
#pragma unroll
    for (int i = 0; i < kJoined; ++i) {
      if (first + i + 1 >= runs) continue;
      made[i] = run_state(p, at, first + i)[n * p.args.channels];
      delta[i] = *run_delta(p, at, first + i);
    }
#pragma unroll
    for (int i = 0; i < kJoined; ++i) {
      if (first + i >= runs) continue;
      run_state(p, at, first + i)[n * p.args.channels] = h;
      h = fmaf(expf(a * delta[i]), h, made[i]);
    }
  }
}

/// Outputs; the last run leaves the sequence's state behind.
template <int kStates, bool kF32>
__global__ void __launch_bounds__(kThreads, blocks_for(kStates)) output_kernel(const __grid_constant__ Parameters p) {
  __shared__ Shared<kStates> shared;
  let_successors_begin();
  const Place at = place_of(p);
  const Worker<kStates, true, kF32> worker(p.args, at);
  float* state = static_cast<float*>(p.args.states[at.sequence]) + at.channel;
  wait_for_predecessors();
  if (at.begin >= at.rows()) return;
  const bool is_there = at.channel < p.args.channels;
  const float* from = at.rows() > kRun ? run_state(p, at, at.run) : state;
  float h[kStates];
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    h[n] = is_there && n < p.args.state_size ? from[n * p.args.channels] : 0.0f;
  }
  worker.run(h, shared);
  if (!is_there || at.end != at.rows()) return;
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    if (n < p.args.state_size) state[n * p.args.channels] = h[n];
  }
}

template <int kStates, bool kF32>
Status launch_scan(const Parameters& p, Stream stream) {
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.args.channels, kThreads));
  const auto count = static_cast<unsigned>(p.args.batch.count);
  const LaunchShape by_run{.grid = dim3(blocks, count, static_cast<unsigned>(p.runs)), .block = dim3(kThreads)};
  const LaunchShape by_state{.grid = dim3(blocks, count, static_cast<unsigned>(p.args.state_size)),
                             .block = dim3(kThreads)};
  if (p.runs > 1) {
    if (const Status status = launch(run_kernel<kStates, kF32>, by_run, stream, p); status != Status::ok) return status;
    if (const Status status = launch(join_kernel, by_state, stream, p); status != Status::ok) return status;
  }
  return launch(output_kernel<kStates, kF32>, by_run, stream, p);
}

template <int kStates>
Status launch_scan(const Parameters& p, Stream stream) {
  bool all_f32 = true;
  for (const Input* x : {&p.args.u, &p.args.dt, &p.args.b, &p.args.c, &p.args.z}) all_f32 &= x->dtype == DType::f32;
  return all_f32 ? launch_scan<kStates, true>(p, stream) : launch_scan<kStates, false>(p, stream);
}

int runs_of(int32_t max_rows) { return max_rows <= 0 ? 0 : (max_rows + kRun - 1) / kRun; }

}  // namespace

size_t scan_workspace(const Batch& batch, int64_t channels, int64_t state_size) noexcept {
  if (runs_of(batch.max_rows) <= 1) return 0;
  return static_cast<size_t>(slots_of_runs(batch, kRun) * channels * (state_size + 1)) * sizeof(float);
}

Status selective_scan(const ScanArgs& args, Stream stream) noexcept {
  if (args.state_size < 1 || args.state_size > kMaxScanState) return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0 || args.channels == 0) return Status::ok;
  if (args.workspace.bytes < scan_workspace(args.batch, args.channels, args.state_size)) return Status::invalid_value;
  Parameters p{
      .args = args, .runs = runs_of(args.batch.max_rows), .run_state = static_cast<float*>(args.workspace.data)};
  p.run_delta = p.run_state + slots_of_runs(args.batch, kRun) * args.channels * args.state_size;
  return args.state_size <= 16 ? launch_scan<16>(p, stream) : launch_scan<64>(p, stream);
}

}  // namespace hxq::cuda
