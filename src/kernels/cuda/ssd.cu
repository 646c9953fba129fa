// State-space duality. A warp has kHeadDims elements of a head for a run of tokens, one after the other: lane l the
// states l / 4 * kStates and following of elements l % 4 * 2 and one further. Nothing is shared between warps.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/runs.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kHeadDims = 8;
constexpr int kRun = 128;       ///< tokens of a run, where segments are cut
constexpr int kFewestRuns = 3;  ///< that are worth it
constexpr int kJoinThreads = 256;
/// Of states between runs: where batches ask for more, their segments stay whole.
constexpr size_t kMostRunBytes = size_t{256} << 20;

struct Parameters {
  SsdArgs args;
  /// [slots, heads, state_size, head_dim]: what a run makes of zeros, then what it starts from; null: segments stay
  /// whole.
  float* run_state = nullptr;
  float* run_delta = nullptr;  // [slots, heads]: sums of delta

  __device__ int64_t state_elements() const { return args.heads * args.state_size * args.head_dim; }
  __device__ int64_t slot(int sequence, int run) const {
    return slot_of_run(args.batch.segments[sequence], sequence, run, kRun);
  }
  /// Whether a segment of so many tokens is cut.
  __device__ bool is_cut(int rows) const { return run_state != nullptr && rows > kRun; }
};

/// Blocks of a multiprocessor: more warps hide what a token waits for, where registers suffice.
constexpr int blocks_for(int states) {
#if __CUDA_ARCH__ >= 900
  return states <= 16 ? 4 : 1;
#else
  return states <= 16 ? 3 : 1;
#endif
}

template <int kStates>
struct Token {
  float b[kStates], c[kStates];
  float x[2];
  float dt;
};

/// kOutput: from what a run starts to its outputs, of the last one to the sequence's state; otherwise from zeros to
/// what a run makes of them. kPlain: everything is float, and a lane's B and C lie at multiples of 16 bytes.
template <int kStates, bool kOutput, bool kPlain>
class Worker {
 public:
  __device__ Worker(const Parameters& parameters, int sequence, int run, int64_t head, int64_t first_dim)
      : p_(parameters.args),
        segment_(p_.batch.segments[sequence]),
        head_(head),
        group_(head / (p_.heads / p_.groups)),
        dim_(first_dim + threadIdx.x % 4 * 2),
        state_begin_(static_cast<int>(threadIdx.x % 32 / 4) * kStates),
        is_cut_(parameters.is_cut(segment_.end - segment_.begin)) {
    const int rows = segment_.end - segment_.begin;
    begin_ = run * kRun;
    end_ = is_cut_ ? min(begin_ + kRun, rows) : rows;
    is_last_ = end_ == rows;
    is_there_ = begin_ < end_ && (kOutput ? is_cut_ || run == 0 : is_cut_ && !is_last_);
    state_ = static_cast<float*>(p_.states[sequence]) + head * p_.state_size * p_.head_dim;
    of_run_ = state_;
    if (is_cut_) {
      const int64_t slot = parameters.slot(sequence, run);
      of_run_ = parameters.run_state + slot * parameters.state_elements() + head * p_.state_size * p_.head_dim;
      delta_ = parameters.run_delta + slot * p_.heads + head;
    }
  }

  __device__ void run() {
    if (!is_there_) return;
    float s[kStates][2];
    for_states([&](int n, int i, int64_t at) { s[n][i] = kOutput ? of_run_[at] : 0.0f; },
               [&](int n, int i) { s[n][i] = 0; });
    const float a = p_.a[head_], bias = p_.dt_bias[head_];
    float all_delta = 0;
    Token<kStates> next = load(begin_);
    for (int t = begin_; t < end_; ++t) {
      const Token<kStates> token = next;
      if (t + 1 < end_) next = load(t + 1);
      const float delta = fminf(fmaxf(softplus(token.dt + bias), p_.dt_min), p_.dt_max);
      const float decay = __expf(delta * a);
      all_delta += delta;
      float y[2] = {};
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          s[n][i] = fmaf(decay, s[n][i], delta * token.x[i] * token.b[n]);
          y[i] = fmaf(s[n][i], token.c[n], y[i]);
        }
      }
      if (kOutput) write(t, token, y);
    }
    if (kOutput && !is_last_) return;
    for_states([&](int n, int i, int64_t at) { (kOutput ? state_ : of_run_)[at] = s[n][i]; }, [](int, int) {});
    if (!kOutput && threadIdx.x % 32 == 0 && dim_ == 0) *delta_ = all_delta;
  }

 private:
  /// inside(n, i, place) for the lane's states, outside(n, i) for those that the matrix does not have.
  template <class Inside, class Outside>
  __device__ void for_states(const Inside& inside, const Outside& outside) const {
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (state_begin_ + n < p_.state_size && dim_ + i < p_.head_dim) {
          inside(n, i, (state_begin_ + n) * p_.head_dim + dim_ + i);
        } else {
          outside(n, i);
        }
      }
    }
  }

  __device__ Token<kStates> load(int t) const {
    const int64_t row = segment_.begin + t;
    Token<kStates> token;
    load_states(p_.b, row, token.b);
    if (kOutput) load_states(p_.c, row, token.c);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      token.x[i] = dim_ + i < p_.head_dim ? load_one(p_.x, row, head_ * p_.head_dim + dim_ + i) : 0.0f;
    }
    token.dt = load_one(p_.dt, row, head_);
    return token;
  }

  __device__ static float load_one(const Input& from, int64_t row, int64_t col) {
    return kPlain ? static_cast<const float*>(from.data)[row * from.stride + col] : load_at(from, row, col);
  }

  /// B or C of the lane's states, zeros for those that the matrix does not have.
  __device__ void load_states(const Input& from, int64_t row, float (&to)[kStates]) const {
    const int64_t at = group_ * p_.state_size + state_begin_;
    if constexpr (kPlain && kStates % 4 == 0) {
#pragma unroll
      for (int n = 0; n < kStates; n += 4) {
        const auto* four = static_cast<const float*>(from.data) + row * from.stride + at + n;
        const float4 v = state_begin_ + n < p_.state_size ? *reinterpret_cast<const float4*>(four) : float4{};
        to[n] = v.x, to[n + 1] = v.y, to[n + 2] = v.z, to[n + 3] = v.w;
      }
    } else {
#pragma unroll
      for (int n = 0; n < kStates; ++n) to[n] = state_begin_ + n < p_.state_size ? load_one(from, row, at + n) : 0.0f;
    }
  }

  __device__ void write(int t, const Token<kStates>& token, const float (&y)[2]) const {
    const int64_t row = segment_.begin + t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = y[i];
      for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
      if (threadIdx.x % 32 >= 4 || dim_ + i >= p_.head_dim) continue;
      const int64_t at = head_ * p_.head_dim + dim_ + i;
      sum = fmaf(p_.d[head_], token.x[i], sum);
      if (p_.z.data) sum *= silu(load_one(p_.z, row, at));
      store_at(p_.y, row, at, sum);
    }
  }

  const SsdArgs& p_;
  const RowRange segment_;
  const int64_t head_, group_, dim_;
  const int state_begin_;
  const bool is_cut_;
  bool is_there_, is_last_;  ///< the run, and of its segment
  int begin_, end_;          ///< its tokens
  float *state_, *of_run_;   ///< of the head: the sequence's, and what the run starts from or makes
  float* delta_ = nullptr;   ///< likewise, where the segment is cut
};

template <int kStates, bool kOutput, bool kPlain>
__global__ void __launch_bounds__(kWarps * 32, blocks_for(kStates)) ssd_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t parts = ceil_div<int64_t>(p.args.head_dim, kHeadDims);
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= p.args.heads * parts) return;
  Worker<kStates, kOutput, kPlain>(p, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z), item / parts,
                                   item % parts * kHeadDims)
      .run();
}

/// From what runs make of zeros to what they start from.
__global__ void __launch_bounds__(kJoinThreads) join_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const auto sequence = static_cast<int>(blockIdx.y);
  const RowRange segment = p.args.batch.segments[sequence];
  const int64_t i = int64_t{blockIdx.x} * kJoinThreads + threadIdx.x, elements = p.state_elements();
  if (!p.is_cut(segment.end - segment.begin) || i >= elements) return;
  const int64_t head = i / (p.args.state_size * p.args.head_dim), first = p.slot(sequence, 0);
  const int last = ceil_div(segment.end - segment.begin, kRun) - 1;
  const float a = p.args.a[head];
  float* of_run = p.run_state + first * elements + i;
  float s = static_cast<const float*>(p.args.states[sequence])[i];
#pragma unroll 4
  for (int r = 0; r < last; ++r, of_run += elements) {
    const float made = *of_run;
    *of_run = s;
    s = fmaf(s, __expf(p.run_delta[(first + r) * p.args.heads + head] * a), made);
  }
  *of_run = s;
}

bool is_plain(const SsdArgs& args) {
  const auto is_float = [](const Input& from) { return from.dtype == DType::f32; };
  const auto is_aligned = [](const Input& from) {
    return reinterpret_cast<uintptr_t>(from.data) % 16 == 0 && from.stride % 4 == 0;
  };
  return is_float(args.x) && is_float(args.dt) && is_float(args.b) && is_float(args.c) &&
         (!args.z.data || is_float(args.z)) && is_aligned(args.b) && is_aligned(args.c) && args.state_size % 4 == 0;
}

template <int kStates, bool kPlain>
Status launch_all(const Parameters& p, Stream stream) {
  const SsdArgs& args = p.args;
  const auto count = static_cast<unsigned>(args.batch.count);
  const int64_t items = args.heads * ceil_div<int64_t>(args.head_dim, kHeadDims);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(items, kWarps)), count,
                                       p.run_state ? static_cast<unsigned>(ceil_div(args.batch.max_rows, kRun)) : 1),
                          .block = dim3(kWarps * 32)};
  Status status = Status::ok;
  if (p.run_state) {
    const int64_t elements = args.heads * args.state_size * args.head_dim;
    status = launch(ssd_kernel<kStates, false, kPlain>, shape, stream, p);
    if (status == Status::ok) {
      status = launch(join_kernel,
                      {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(elements, kJoinThreads)), count),
                       .block = dim3(kJoinThreads)},
                      stream, p);
    }
  }
  return status == Status::ok ? launch(ssd_kernel<kStates, true, kPlain>, shape, stream, p) : status;
}

template <int kStates>
Status launch_states(const Parameters& p, Stream stream) {
  return is_plain(p.args) ? launch_all<kStates, true>(p, stream) : launch_all<kStates, false>(p, stream);
}

}  // namespace

size_t ssd_workspace(const SsdArgs& args) noexcept {
  if (args.batch.max_rows <= (kFewestRuns - 1) * kRun) return 0;
  const int64_t slots = slots_of_runs(args.batch, kRun);
  const int64_t elements = slots * args.heads * (args.state_size * args.head_dim + 1);
  const size_t bytes = static_cast<size_t>(elements) * sizeof(float);
  return bytes <= kMostRunBytes ? bytes : 0;
}

Status ssd(const SsdArgs& args, Stream stream) noexcept {
  if (args.groups < 1 || args.heads % args.groups != 0 || args.state_size < 1 || args.state_size > kMaxSsdState) {
    return Status::invalid_value;
  }
  if (args.batch.count == 0 || args.batch.max_rows == 0 || args.heads == 0) return Status::ok;
  const size_t bytes = ssd_workspace(args);
  if (args.workspace.bytes < bytes) return Status::invalid_value;
  Parameters p{.args = args};
  if (bytes > 0) {
    p.run_state = static_cast<float*>(args.workspace.data);
    p.run_delta = p.run_state + slots_of_runs(args.batch, kRun) * args.heads * args.state_size * args.head_dim;
  }
  if (args.state_size <= 16) return launch_states<2>(p, stream);
  if (args.state_size <= 64) return launch_states<8>(p, stream);
  if (args.state_size <= 128) return launch_states<16>(p, stream);
  return launch_states<32>(p, stream);
}

}  // namespace hxq::cuda
