// The gradient of Mamba-2's recurrence. A thread has one element of a head of one run of tokens, and takes the states
// one by one: of a state it keeps every token's in registers.

#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_gradients.cuh"
#include "kernels/cuda/sequence_gradients.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 64;  ///< elements of a head that a block has
constexpr int kWarps = kThreads / 32;
constexpr int kRun = 16;    ///< tokens of a run
constexpr int kJoined = 8;  ///< runs whose states are loaded together

struct Parameters {
  SsdGradientArgs args;
  int runs;       ///< of a sequence
  float* start;   // [batch * runs, heads, state_size, head_dim]: what a run makes of zeros, then the state before it
  float* carry;   // the same size: what a run makes of a gradient of zeros behind it, then the one behind it
  float* deltas;  // [batch * runs, heads]: sums of delta

  __device__ int64_t inner() const { return args.heads * args.head_dim; }
  /// Columns of dxbc.
  __device__ int64_t width() const { return inner() + 2 * args.groups * args.state_size; }
};

struct Place {
  int64_t head, group, dim, slot, row;  // dim: in the head; row: of the run's first token
  int count;                            // tokens of the run
  bool is_there;

  __device__ explicit Place(const Parameters& p) {
    const int64_t parts = ceil_div<int64_t>(p.args.head_dim, kThreads);
    head = blockIdx.x / parts;
    group = head / (p.args.heads / p.args.groups);
    dim = blockIdx.x % parts * kThreads + threadIdx.x;
    slot = int64_t{blockIdx.y} * p.runs + blockIdx.z;
    const int first = static_cast<int>(blockIdx.z) * kRun;
    row = int64_t{blockIdx.y} * p.args.tokens + first;
    count = min(kRun, p.args.tokens - first);
    is_there = dim < p.args.head_dim;
  }

  /// Of an array [slots, heads, state_size, head_dim].
  __device__ int64_t state_at(const SsdGradientArgs& p, int64_t n) const {
    return ((slot * p.heads + head) * p.state_size + n) * p.head_dim + dim;
  }
};

/// What the tokens of a run have in common for all elements of a head: zeros where there are no tokens.
struct Shared {
  float delta[kRun], decay[kRun], slope[kRun];  // slope: of delta in dt, 0 where delta is clamped
  float sums[kWarps][2 * kRun];                 // over elements: of dstate B x, then of what goes through the decay
};

extern __shared__ __align__(16) float coefficients[];  // B and C, [state_size, kRun] each, then what a kernel sums

__device__ inline void load_shared(const Parameters& p, const Place& at, float a, Shared& shared) {
  const SsdGradientArgs& in = p.args;
  const auto n = static_cast<int>(in.state_size);
  for (int i = static_cast<int>(threadIdx.x); i < kRun * n; i += kThreads) {
    const float* b = in.xbc + (at.row + i / n) * in.xbc_stride + p.inner() + at.group * n + i % n;
    const int to = i % n * kRun + i / n;
    coefficients[to] = i / n < at.count ? b[0] : 0.0f;
    coefficients[kRun * n + to] = i / n < at.count ? b[in.groups * n] : 0.0f;
  }
  const auto t = static_cast<int>(threadIdx.x);
  if (t < kRun) {
    const bool exists = t < at.count;
    const float before = exists ? in.dt[(at.row + t) * in.dt_stride + at.head] + in.dt_bias[at.head] : 0.0f;
    const float unclamped = softplus(before);
    const float delta = exists ? fminf(fmaxf(unclamped, in.dt_min), in.dt_max) : 0.0f;
    shared.delta[t] = delta;
    shared.decay[t] = __expf(delta * a);
    shared.slope[t] = exists && unclamped >= in.dt_min && unclamped <= in.dt_max ? sigmoid(before) : 0.0f;
  }
  __syncthreads();
}

/// What a thread's tokens are. dp: the gradient before the gate.
struct Tokens {
  float delta_x[kRun], dp[kRun];

  __device__ Tokens(const Parameters& p, const Place& at, const Shared& shared) {
    const SsdGradientArgs& in = p.args;
    const int64_t col = at.head * in.head_dim + at.dim;
#pragma unroll
    for (int t = 0; t < kRun; ++t) {
      const bool exists = at.is_there && t < at.count;
      delta_x[t] = exists ? shared.delta[t] * in.xbc[(at.row + t) * in.xbc_stride + col] : 0.0f;
      const float z = exists ? in.z[(at.row + t) * in.z_stride + col] : 0.0f;
      dp[t] = exists ? in.g[(at.row + t) * p.inner() + col] * z * sigmoid(z) : 0.0f;
    }
  }
};

/// What every run makes of zeros, forwards and backwards.
__global__ void __launch_bounds__(kThreads) run_kernel(const __grid_constant__ Parameters p) {
  __shared__ Shared shared;
  const SsdGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const Place at(p);
  load_shared(p, at, -__expf(in.a_log[at.head]), shared);
  if (!at.is_there) return;
  const Tokens tokens(p, at, shared);
  const auto states = static_cast<int>(in.state_size);
  const float *b = coefficients, *c = coefficients + kRun * states;
  if (at.dim == 0) {
    float total = 0;
    for (int t = 0; t < kRun; ++t) total += shared.delta[t];
    p.deltas[at.slot * in.heads + at.head] = total;
  }
  for (int n = 0; n < states; ++n) {
    float h = 0, carry = 0;
#pragma unroll
    for (int t = 0; t < kRun; ++t) h = fmaf(shared.decay[t], h, tokens.delta_x[t] * b[n * kRun + t]);
#pragma unroll
    for (int t = kRun - 1; t >= 0; --t) carry = fmaf(tokens.dp[t], c[n * kRun + t], carry) * shared.decay[t];
    p.start[at.state_at(in, n)] = h;
    p.carry[at.state_at(in, n)] = carry;
  }
}

/// Joins the runs of a sequence: a thread has one element of one state, forwards or backwards.
__global__ void __launch_bounds__(kThreads) join_kernel(const __grid_constant__ Parameters p) {
  const SsdGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const int64_t size = in.state_size * in.head_dim, i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size) return;
  const int64_t head = blockIdx.y, sequence = blockIdx.z / 2;
  const bool backwards = blockIdx.z % 2 == 1;
  float* states = backwards ? p.carry : p.start;
  const float a = -expf(in.a_log[head]);
  const auto at = [&](int run) { return (sequence * p.runs + (backwards ? p.runs - 1 - run : run)) * in.heads + head; };
  float state = 0;
  for (int first = 0; first < p.runs; first += kJoined) {
    float made[kJoined] = {}, delta[kJoined] = {};
#pragma unroll
    for (int r = 0; r < kJoined; ++r) {
      if (first + r >= p.runs) continue;
      made[r] = states[at(first + r) * size + i];
      delta[r] = p.deltas[at(first + r)];
    }
#pragma unroll
    for (int r = 0; r < kJoined; ++r) {
      if (first + r >= p.runs) continue;
      states[at(first + r) * size + i] = state;
      state = fmaf(expf(a * delta[r]), state, made[r]);
    }
  }
}

/// All gradients of a run.
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ Parameters p) {
  __shared__ Shared shared;
  const SsdGradientArgs& in = p.args;
  let_successors_begin();
  wait_for_predecessors();
  const Place at(p);
  const float a = -__expf(in.a_log[at.head]);
  load_shared(p, at, a, shared);
  const auto states = static_cast<int>(in.state_size);
  const float *b = coefficients, *c = coefficients + kRun * states;
  float* sums = coefficients + 2 * kRun * states;  // [kWarps, states, 2, kRun]: of dB, then dC
  const Tokens tokens(p, at, shared);
  const auto warp = static_cast<int>(threadIdx.x / 32), place = place_of_lane();
  float dstate_b[kRun] = {}, output[kRun] = {}, through_decay[kRun] = {};
  for (int n = 0; n < states; ++n) {
    const float start = at.is_there ? p.start[at.state_at(in, n)] : 0.0f;
    float carry = at.is_there ? p.carry[at.state_at(in, n)] : 0.0f;
    float after[kRun], h = start;
#pragma unroll
    for (int t = 0; t < kRun; ++t) {
      h = fmaf(shared.decay[t], h, tokens.delta_x[t] * b[n * kRun + t]);
      after[t] = h;
    }
    float of_places[4][kRun / 2];  // for dB of early and late tokens, then for dC
#pragma unroll
    for (int t = kRun - 1; t >= 0; --t) {
      const float from_b = b[n * kRun + t], from_c = c[n * kRun + t];
      output[t] = fmaf(after[t], from_c, output[t]);
      const float dh = fmaf(tokens.dp[t], from_c, carry);
      through_decay[t] = fmaf(dh, t > 0 ? after[t > 0 ? t - 1 : 0] : start, through_decay[t]);
      dstate_b[t] = fmaf(dh, from_b, dstate_b[t]);
      of_places[t / 8][t % 8] = dh * tokens.delta_x[t];
      of_places[2 + t / 8][t % 8] = tokens.dp[t] * after[t];
      carry = dh * shared.decay[t];
    }
    sums[(warp * states + n) * 32 + place] = sum_places(of_places);
  }
  const float skip = in.d[at.head];
  float dd = 0, of_places[4][kRun / 2];
#pragma unroll
  for (int t = 0; t < kRun; ++t) {
    const int64_t col = at.head * in.head_dim + at.dim;
    const bool exists = at.is_there && t < at.count;
    const float x = exists ? in.xbc[(at.row + t) * in.xbc_stride + col] : 0.0f;
    dd = fmaf(tokens.dp[t], x, dd);
    of_places[t / 8][t % 8] = dstate_b[t] * x;
    of_places[2 + t / 8][t % 8] = through_decay[t];
    if (!exists) continue;
    const float z = in.z[(at.row + t) * in.z_stride + col], gate = sigmoid(z);
    const float g = in.g[(at.row + t) * p.inner() + col];
    in.dxbc[(at.row + t) * p.width() + col] = fmaf(tokens.dp[t], skip, dstate_b[t] * shared.delta[t]);
    in.dz[(at.row + t) * p.inner() + col] = g * fmaf(skip, x, output[t]) * gate * fmaf(z, 1.0f - gate, 1.0f);
  }
  shared.sums[warp][place] = sum_places(of_places);
  dd = sum_lanes(dd);
  if (threadIdx.x % 32 == 0) atomicAdd(in.dd + at.head, dd);
  __syncthreads();
  if (threadIdx.x < kRun) {
    const auto t = static_cast<int>(threadIdx.x);
    float of_input = 0, of_decay = 0;
    for (int w = 0; w < kWarps; ++w) of_input += shared.sums[w][t], of_decay += shared.sums[w][kRun + t];
    of_decay *= shared.decay[t];
    if (t < at.count) {
      const float ds = fmaf(of_decay, a, of_input) * shared.slope[t];
      atomicAdd(in.ddt + (at.row + t) * in.heads + at.head, ds);
      atomicAdd(in.ddt_bias + at.head, ds);
      atomicAdd(in.da_log + at.head, of_decay * shared.delta[t] * a);
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < states * 32; i += kThreads) {
    const int t = i % kRun, n = i / 32;
    if (t >= at.count) continue;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * states * 32 + i];
    const int64_t of_c = i % 32 < kRun ? 0 : in.groups * states;
    atomicAdd(in.dxbc + (at.row + t) * p.width() + p.inner() + of_c + at.group * states + n, sum);
  }
}

int runs_of(const SsdGradientArgs& args) { return ceil_div(args.tokens, kRun); }

}  // namespace

size_t ssd_gradient_workspace(const SsdGradientArgs& args) noexcept {
  const int64_t slots = int64_t{args.batch} * runs_of(args);
  return static_cast<size_t>(slots * args.heads * (2 * args.state_size * args.head_dim + 1)) * sizeof(float);
}

Status ssd_gradient(const SsdGradientArgs& args, Stream stream) noexcept {
  if (args.groups < 1 || args.heads % args.groups != 0 || args.state_size < 1 || args.state_size > kMaxSsdState) {
    return Status::invalid_value;
  }
  if (args.workspace.bytes < ssd_gradient_workspace(args)) return Status::invalid_value;
  const int64_t inner = args.heads * args.head_dim, rows = int64_t{args.batch} * args.tokens;
  Parameters p{.args = args, .runs = runs_of(args), .start = static_cast<float*>(args.workspace.data)};
  p.carry = p.start + args.batch * p.runs * inner * args.state_size;
  p.deltas = p.carry + args.batch * p.runs * inner * args.state_size;
  const struct {
    float* memory;
    int64_t count;
  } summed[] = {{args.dxbc, rows * (inner + 2 * args.groups * args.state_size)},
                {args.ddt, rows * args.heads},
                {args.da_log, args.heads},
                {args.dd, args.heads},
                {args.ddt_bias, args.heads}};
  for (const auto& [memory, count] : summed) {
    if (const Status status = clear_floats(memory, count, stream); status != Status::ok) return status;
  }
  if (rows == 0 || inner == 0) return Status::ok;
  const auto heads = static_cast<unsigned>(args.heads), batch = static_cast<unsigned>(args.batch);
  const auto parts = static_cast<unsigned>(ceil_div<int64_t>(args.head_dim, kThreads));
  const auto states = static_cast<size_t>(args.state_size);
  LaunchShape by_run{.grid = dim3(heads * parts, batch, static_cast<unsigned>(p.runs)),
                     .block = dim3(kThreads),
                     .shared_bytes = 2 * kRun * states * sizeof(float)};
  Status status = launch(run_kernel, by_run, stream, p);
  if (status != Status::ok) return status;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(args.state_size * args.head_dim, kThreads));
  status = launch(join_kernel, {.grid = dim3(blocks, heads, 2 * batch), .block = dim3(kThreads)}, stream, p);
  if (status != Status::ok) return status;
  by_run.shared_bytes += kWarps * 32 * states * sizeof(float);
  return launch(gradient_kernel, by_run, stream, p);
}

}  // namespace hxq::cuda
