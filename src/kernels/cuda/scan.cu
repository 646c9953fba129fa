// Selective scan, token after token. Of few tokens a thread has a channel with all of its states, of more some lanes
// share them. States are in registers.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

/// kF32: all activations are.
template <bool kF32>
__device__ inline float load_input(const Input& x, int64_t row, int64_t col) {
  return kF32 ? static_cast<const float*>(x.data)[row * x.stride + col] : load_at(x, row, col);
}

// ---- few tokens: a thread has a channel and all of its states ----

constexpr int kFewTokens = 8;
constexpr int kFewThreads = 64;

template <int kStates, bool kF32>
__global__ void __launch_bounds__(kFewThreads) few_tokens_kernel(const __grid_constant__ ScanArgs p) {
  __shared__ float coefficients[kFewTokens][2][kStates];  // B and C
  let_successors_begin();
  const RowRange segment = p.batch.segments[blockIdx.y];
  const int rows = segment.end - segment.begin;
  const int64_t channel = int64_t{blockIdx.x} * kFewThreads + threadIdx.x;
  const bool is_there = channel < p.channels;
  const int64_t c = is_there ? channel : 0;
  float a[kStates], h[kStates];
#pragma unroll
  for (int n = 0; n < kStates; ++n) a[n] = n < p.state_size ? __ldg(p.a + n * p.channels + c) * kLog2E : 0.0f;
  const float bias = p.dt_bias ? __ldg(p.dt_bias + c) : 0.0f, skip = __ldg(p.d + c);
  float* state = static_cast<float*>(p.states[blockIdx.y]) + c;
  wait_for_predecessors();
  if (rows <= 0) return;
#pragma unroll
  for (int n = 0; n < kStates; ++n) h[n] = n < p.state_size ? state[n * p.channels] : 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < rows * 2 * kStates; i += kFewThreads) {
    const int t = i / (2 * kStates), n = i % kStates;
    const Input& from = i / kStates % 2 == 0 ? p.b : p.c;
    coefficients[t][i / kStates % 2][n] = n < p.state_size ? load_input<kF32>(from, segment.begin + t, n) : 0.0f;
  }
  __syncthreads();
  for (int t = 0; t < rows; ++t) {
    const int64_t row = segment.begin + t;
    const float u = load_input<kF32>(p.u, row, c), delta = softplus(load_input<kF32>(p.dt, row, c) + bias);
    const float delta_u = delta * u;
    float sum[2] = {};
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      h[n] = fmaf(fast_exp2(delta * a[n]), h[n], delta_u * coefficients[t][0][n]);
      sum[n % 2] = fmaf(h[n], coefficients[t][1][n], sum[n % 2]);
    }
    const float gate = silu(load_input<kF32>(p.z, row, c));
    if (is_there) store_at(p.y, row, c, fmaf(skip, u, sum[0] + sum[1]) * gate);
  }
  if (!is_there) return;
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    if (n < p.state_size) state[n * p.channels] = h[n];
  }
}

// ---- more tokens: lanes share the states of a channel, and other warps do what needs no state ----

constexpr int kLanes = 8;     ///< of a channel, two of its 16 states (eight of 64) each
constexpr int kScanners = 3;  ///< warps that go through the tokens
constexpr int kChannels = kScanners * 32 / kLanes;
constexpr int kFours = kChannels / 4;            ///< of a token's channels
constexpr int kTokensOfAssistant = 32 / kFours;  ///< of a chunk
constexpr int kAhead = 2;                        ///< chunks whose B and C are on their way
constexpr int kBrought = kAhead + 3;             ///< chunks of B and C at once
constexpr int kPrepared = 3;                     ///< chunks that are prepared and not finished

/// What a block keeps of chunks. Tokens behind a segment's end change no state. While scanners are at chunk i and read
/// the beginning of i + 1, assistants finish i - 1, prepare i + 2 and bring i + 2 + kAhead.
template <int kStates, int kAssistants>
struct Chunks {
  static constexpr int kTokens = kAssistants * kTokensOfAssistant;  ///< of a chunk
  static constexpr int kStateSize = kStates * kLanes;

  float2 b[kBrought][kTokens][kStateSize / 2], c[kBrought][kTokens][kStateSize / 2];  // a lane has adjacent states
  float4 times[kPrepared][2][kTokens][kFours];  // delta, delta u; of the first two channels of four, then the others
  float4 ends[kPrepared][2][kTokens][kFours];   // D u, silu(z)
  float4 sums[2][kTokens][kFours][kLanes + 1];  // of the states of each lane that four channels have; one for the banks
};

extern __shared__ __align__(16) unsigned char shared[];  // Chunks

/// A warp that brings the inputs of chunks, prepares them and finishes outputs. kFast: floats that move by fours.
template <int kStates, int kAssistants, bool kFast>
class Assistant {
  using Memory = Chunks<kStates, kAssistants>;
  static constexpr int kTokens = Memory::kTokens;

 public:
  __device__ Assistant(const ScanArgs& p, const RowRange& segment, int64_t first_channel, Memory& chunks)
      : p_(p), begin_(segment.begin), rows_(segment.end - segment.begin), chunks_(chunks) {
    thread_ = static_cast<int>(threadIdx.x) - kScanners * 32;
    const int lane = thread_ % 32, last = kFours * kTokensOfAssistant - 1;
    has_token_ = lane <= last;
    four_ = min(lane, last) % kFours;
    token_ = thread_ / 32 * kTokensOfAssistant + min(lane, last) / kFours;
    channel_ = first_channel + 4 * four_;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const bool exists = channel_ + k < p.channels;
      bias_[k] = exists && p.dt_bias ? __ldg(p.dt_bias + channel_ + k) : 0.0f;
      skip_[k] = exists ? __ldg(p.d + channel_ + k) : 0.0f;
    }
  }

  /// Starts to load what the thread's token of a chunk takes; of a row that is not there, another.
  __device__ void load(int chunk) {
    const int64_t row = begin_ + min(chunk * kTokens + token_, rows_ - 1);
    load(p_.dt, row, dt_);
    load(p_.u, row, u_);
    load(p_.z, row, z_);
  }

  /// Starts to bring the thread's part of B and C of a chunk: of none past the last, where scanners still read.
  __device__ void bring(int chunk) const {
    constexpr int kPieces = Memory::kStateSize / 4;
    if (chunk * kTokens < rows_) {
#pragma unroll
      for (int i = thread_; i < kTokens * 2 * kPieces; i += kAssistants * 32) {
        const int t = i / (2 * kPieces), n = i % kPieces * 4;
        const bool is_b = i / kPieces % 2 == 0;
        float2* to = &(is_b ? chunks_.b : chunks_.c)[chunk % kBrought][t][n / 2];
        bring(reinterpret_cast<float*>(to), is_b ? p_.b : p_.c, chunk * kTokens + t, n);
      }
    }
    end_copy_group();
  }

  /// Prepares the thread's token of a chunk, which was loaded, and loads that of the next.
  __device__ void prepare(int chunk) {
    const bool exists = chunk * kTokens + token_ < rows_;
    float delta[4], u[4], gate[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      delta[k] = softplus(exists ? dt_[k] + bias_[k] : -INFINITY);
      u[k] = exists ? u_[k] : 0.0f;
      gate[k] = silu(z_[k]);
    }
    load(chunk + 1);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (!has_token_) continue;
      chunks_.times[chunk % kPrepared][k][token_][four_] =
          make_float4(delta[2 * k], delta[2 * k] * u[2 * k], delta[2 * k + 1], delta[2 * k + 1] * u[2 * k + 1]);
      chunks_.ends[chunk % kPrepared][k][token_][four_] =
          make_float4(skip_[2 * k] * u[2 * k], gate[2 * k], skip_[2 * k + 1] * u[2 * k + 1], gate[2 * k + 1]);
    }
    wait_for_copies<kAhead - 1>();  // of the chunk's B and C
  }

  /// Writes y of the thread's token of a chunk.
  __device__ void finish(int chunk) const {
    if (!has_token_ || chunk * kTokens + token_ >= rows_ || channel_ >= p_.channels) return;
    const int64_t row = begin_ + chunk * kTokens + token_;
    const auto& sums = chunks_.sums[chunk % 2][token_][four_];
    float y[4] = {};
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const float4 part = sums[lane];
      y[0] += part.x, y[1] += part.y, y[2] += part.z, y[3] += part.w;
    }
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const float4 end = chunks_.ends[chunk % kPrepared][k / 2][token_][four_];
      y[k] = (end.x + y[k]) * end.y;
      y[k + 1] = (end.z + y[k + 1]) * end.w;
    }
    if constexpr (kFast) {
      *reinterpret_cast<float4*>(static_cast<float*>(p_.y.data) + row * p_.y.stride + channel_) =
          make_float4(y[0], y[1], y[2], y[3]);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (channel_ + k < p_.channels) store_at(p_.y, row, channel_ + k, y[k]);
      }
    }
  }

 private:
  /// The thread's channels of a row.
  __device__ void load(const Input& from, int64_t row, float (&to)[4]) const {
    if constexpr (kFast) {
      if (channel_ >= p_.channels) return;
      const float4 four =
          *reinterpret_cast<const float4*>(static_cast<const float*>(from.data) + row * from.stride + channel_);
      to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) to[k] = load_at(from, row, min(channel_ + k, p_.channels - 1));
    }
  }

  /// Four elements of a row as floats, zeros in place of those that are not there.
  __device__ void bring(float* to, const Input& from, int t, int n) const {
    const int64_t row = begin_ + t;
    if constexpr (kFast) {
      copy_async_or_zero(to, static_cast<const float*>(from.data) + row * from.stride + n,
                         t < rows_ && n < p_.state_size);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k) to[k] = t < rows_ && n + k < p_.state_size ? load_at(from, row, n + k) : 0.0f;
    }
  }

  const ScanArgs& p_;
  const int begin_, rows_;
  Memory& chunks_;
  int thread_, four_, token_;  // of the assistants; the thread's channels, its token in a chunk
  bool has_token_;             // two lanes of a warp bring B and C only
  int64_t channel_;
  float bias_[4], skip_[4];
  float dt_[4] = {}, u_[4] = {}, z_[4] = {};  // of the next token
};

/// A lane of a warp that goes through the tokens: some states of a channel. Groups of tokens overlap: what one takes is
/// read while the decays of the next are worked out and the states of the one before that advance.
template <int kStates, int kAssistants>
class Scanner {
  using Memory = Chunks<kStates, kAssistants>;
  static constexpr int kGroup = kStates == 2 ? 5 : 1;  ///< tokens taken together
  static_assert(Memory::kTokens % kGroup == 0);

 public:
  __device__ Scanner(const ScanArgs& p, int64_t first_channel, Memory& chunks)
      : p_(p),
        four_(static_cast<int>(threadIdx.x) / 32),
        channel_(first_channel + 4 * four_ + threadIdx.x % 4),
        chunks_(chunks) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) a_[s] = exists(s) ? __ldg(p.a + state_at(s)) * kLog2E : 0.0f;
  }

  __device__ void load_state(const float* state) {
#pragma unroll
    for (int s = 0; s < kStates; ++s) h_[s] = exists(s) ? state[state_at(s)] : 0.0f;
  }
  __device__ void store_state(float* state) const {
#pragma unroll
    for (int s = 0; s < kStates; ++s) {
      if (exists(s)) state[state_at(s)] = h_[s];
    }
  }

  /// Reads what the first two groups take.
  __device__ void begin() {
    read(0, 0);
    decay();
    read(0, kGroup);
  }

  /// Goes through a chunk. What is read behind the last one is not used.
  __device__ void scan(int chunk) {
    constexpr int kGroups = Memory::kTokens / kGroup, kTogether = kStates == 2 ? kGroups : 2;
#pragma unroll kTogether
    for (int g = 0; g < kGroups; ++g) {
      const Ready now = ready_;
      decay();
      const int next = (g + 2) * kGroup;
      if (next < Memory::kTokens) {
        read(chunk, next);
      } else {
        read(chunk + 1, next - Memory::kTokens);
      }
      advance(now, chunk, g * kGroup);
    }
  }

 private:
  struct Raw {
    float2 times[kGroup], b[kGroup][kStates / 2], c[kGroup][kStates / 2];
  };
  struct Ready {
    float decay[kGroup][kStates], added[kGroup][kStates], c[kGroup][kStates];
  };

  /// Adjacent lanes have adjacent channels, as shared memory gives several what they all read at once. States of a lane
  /// are pairs of adjacent ones.
  static __device__ int pair(int s) { return s / 2 * kLanes + static_cast<int>(threadIdx.x) % 32 / 4; }
  static __device__ int64_t state(int s) { return 2 * pair(s) + s % 2; }
  __device__ int64_t state_at(int s) const { return state(s) * p_.channels + channel_; }
  __device__ bool exists(int s) const { return state(s) < p_.state_size && channel_ < p_.channels; }

  __device__ void read(int chunk, int first) {
    const auto* times =
        reinterpret_cast<const float2*>(&chunks_.times[chunk % kPrepared][threadIdx.x % 4 / 2][first][four_]) +
        threadIdx.x % 2;
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      raw_.times[t] = times[t * kFours * 2];
#pragma unroll
      for (int s = 0; s < kStates / 2; ++s) {
        raw_.b[t][s] = chunks_.b[chunk % kBrought][first + t][pair(2 * s)];
        raw_.c[t][s] = chunks_.c[chunk % kBrought][first + t][pair(2 * s)];
      }
    }
  }

  __device__ void decay() {
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      const float delta = raw_.times[t].x, delta_u = raw_.times[t].y;
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        const float2 b = raw_.b[t][s / 2], c = raw_.c[t][s / 2];
        ready_.decay[t][s] = fast_exp2(delta * a_[s]);
        ready_.added[t][s] = delta_u * (s % 2 == 0 ? b.x : b.y);
        ready_.c[t][s] = s % 2 == 0 ? c.x : c.y;
      }
    }
  }

  __device__ void advance(const Ready& now, int chunk, int first) {
    float sums[kGroup] = {};
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
#pragma unroll
      for (int s = 0; s < kStates; ++s) {
        h_[s] = fmaf(now.decay[t][s], h_[s], now.added[t][s]);
        sums[t] = fmaf(h_[s], now.c[t][s], sums[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < kGroup; ++t) {
      reinterpret_cast<float*>(chunks_.sums[chunk % 2][first + t][four_])[threadIdx.x % 32] = sums[t];
    }
  }

  const ScanArgs& p_;
  const int four_;  // that the channel belongs to
  const int64_t channel_;
  Memory& chunks_;
  float a_[kStates], h_[kStates];
  Raw raw_;
  Ready ready_;
};

/// One block a multiprocessor is told as the least, as the compiler would keep to fewer registers and wait more.
template <int kStates, int kAssistants, bool kFast>
__global__ void __launch_bounds__((kScanners + kAssistants) * 32, 1) scan_kernel(const __grid_constant__ ScanArgs p) {
  auto& chunks = *reinterpret_cast<Chunks<kStates, kAssistants>*>(shared);
  constexpr int kTokens = Chunks<kStates, kAssistants>::kTokens;
  const RowRange segment = p.batch.segments[blockIdx.y];
  const int64_t first_channel = int64_t{blockIdx.x} * kChannels;
  const int count = (segment.end - segment.begin + kTokens - 1) / kTokens;
  auto* state = static_cast<float*>(p.states[blockIdx.y]);
  // The barrier of chunk i: chunks up to i + 1 are prepared, sums up to i - 1 are there.
  if (threadIdx.x / 32 >= kScanners) {
    Assistant<kStates, kAssistants, kFast> assistant(p, segment, first_channel, chunks);
    wait_for_predecessors();
    if (count <= 0) return;
    assistant.load(0);
    for (int i = 0; i < kAhead; ++i) assistant.bring(i);
    for (int i = -1; i <= count; ++i) {
      if (i + 1 < count) {
        assistant.prepare(i + 1);
        assistant.bring(i + 1 + kAhead);
      }
      if (i < 0) continue;
      __syncthreads();
      if (i > 0) assistant.finish(i - 1);
    }
  } else {
    Scanner<kStates, kAssistants> scanner(p, first_channel, chunks);
    wait_for_predecessors();
    if (count <= 0) return;
    scanner.load_state(state);
    for (int i = 0; i < count; ++i) {
      __syncthreads();
      if (i == 0) scanner.begin();
      scanner.scan(i);
    }
    __syncthreads();
    scanner.store_state(state);
  }
  // Blocks that came early would lie many on the multiprocessors that this kernel leaves free.
  let_successors_begin();
}

template <int kStates, int kAssistants, bool kFast>
Status launch_many(const ScanArgs& args, Stream stream) {
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(args.channels, kChannels)),
                                       static_cast<unsigned>(args.batch.count)),
                          .block = dim3((kScanners + kAssistants) * 32),
                          .shared_bytes = sizeof(Chunks<kStates, kAssistants>)};
  return launch(scan_kernel<kStates, kAssistants, kFast>, shape, stream, args);
}

template <int kStates>
Status launch_scan(const ScanArgs& args, Stream stream) {
  constexpr int kOfLane = kStates / kLanes;
  bool all_f32 = true, fours = args.channels % 4 == 0 && args.state_size % 4 == 0;
  for (const Input* x : {&args.u, &args.dt, &args.b, &args.c, &args.z}) {
    all_f32 &= x->dtype == DType::f32;
    fours &= has_fours(*x);
  }
  if (args.batch.max_rows <= kFewTokens) {
    const LaunchShape few{.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(args.channels, kFewThreads)),
                                       static_cast<unsigned>(args.batch.count)),
                          .block = dim3(kFewThreads)};
    return all_f32 ? launch(few_tokens_kernel<kStates, true>, few, stream, args)
                   : launch(few_tokens_kernel<kStates, false>, few, stream, args);
  }
  const bool fast = all_f32 && fours && args.y.dtype == DType::f32 && has_fours(args.y);
  if constexpr (kStates > 16) {
    return fast ? launch_many<kOfLane, 2, true>(args, stream) : launch_many<kOfLane, 2, false>(args, stream);
  } else {
    if (!fast) return launch_many<kOfLane, 3, false>(args, stream);
    // More assistants where a block has a multiprocessor for itself, and the memory.
    const DeviceFacts device = current_device();
    const int64_t blocks = ceil_div<int64_t>(args.channels, kChannels) * args.batch.count;
    return blocks <= device.multiprocessors && sizeof(Chunks<kOfLane, 5>) <= static_cast<size_t>(device.shared_bytes)
               ? launch_many<kOfLane, 5, true>(args, stream)
               : launch_many<kOfLane, 3, true>(args, stream);
  }
}

}  // namespace

Status selective_scan(const ScanArgs& args, Stream stream) noexcept {
  if (args.state_size < 1 || args.state_size > kMaxScanState) return Status::invalid_value;
  if (args.batch.count == 0 || args.batch.max_rows == 0 || args.channels == 0) return Status::ok;
  return args.state_size <= 16 ? launch_scan<16>(args, stream) : launch_scan<64>(args, stream);
}

}  // namespace hxq::cuda
