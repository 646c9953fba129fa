// State-space duality, of many tokens in chunks (ssd_chunks.cu), of few one after the other. There a warp has kHeadDims
// elements of a head: lane l the states l / 4 * kStates and following of elements l % 4 * 2 and one further. Nothing is
// shared between warps.

#include <climits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"
#include "kernels/cuda/ssd_chunks.cuh"
#include "kernels/cuda/ssd_chunks_plan.h"

namespace hxq::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kHeadDims = 8;

struct Parameters {
  SsdArgs args;
  int below;  ///< tokens of the segments that are taken
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

/// kPlain: everything is float, and a lane's B and C lie at multiples of 16 bytes.
template <int kStates, bool kPlain>
class Worker {
 public:
  __device__ Worker(const Parameters& parameters, int sequence, int64_t head, int64_t first_dim)
      : p_(parameters.args),
        segment_(p_.batch.segments[sequence]),
        head_(head),
        group_(head / (p_.heads / p_.groups)),
        dim_(first_dim + threadIdx.x % 4 * 2),
        state_begin_(static_cast<int>(threadIdx.x % 32 / 4) * kStates),
        end_(segment_.end - segment_.begin < parameters.below ? segment_.end : segment_.begin),
        state_(static_cast<float*>(p_.states[sequence])) {}

  __device__ void run() {
    if (segment_.begin >= end_) return;
    float s[kStates][2];
    for_states([&](int n, int i, int64_t at) { s[n][i] = state_[at]; }, [&](int n, int i) { s[n][i] = 0; });
    const float a = p_.a[head_], bias = p_.dt_bias[head_];
    Token<kStates> next = load(segment_.begin);
#pragma unroll 1
    for (int row = segment_.begin; row < end_; ++row) {
      const Token<kStates> token = next;
      if (row + 1 < end_) next = load(row + 1);
      const float delta = fminf(fmaxf(softplus(token.dt + bias), p_.dt_min), p_.dt_max);
      const float decay = __expf(delta * a);
      float y[2] = {};
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          s[n][i] = fmaf(decay, s[n][i], delta * token.x[i] * token.b[n]);
          y[i] = fmaf(s[n][i], token.c[n], y[i]);
        }
      }
      write(row, token, y);
    }
    for_states([&](int n, int i, int64_t at) { state_[at] = s[n][i]; }, [](int, int) {});
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
          inside(n, i, (head_ * p_.state_size + state_begin_ + n) * p_.head_dim + dim_ + i);
        } else {
          outside(n, i);
        }
      }
    }
  }

  __device__ Token<kStates> load(int64_t row) const {
    Token<kStates> token;
    load_states(p_.b, row, token.b);
    load_states(p_.c, row, token.c);
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

  __device__ void write(int64_t row, const Token<kStates>& token, const float (&y)[2]) const {
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
  const int end_;  ///< of the segment, or its begin where it is not taken
  float* const state_;
};

template <int kStates, bool kPlain>
__global__ void __launch_bounds__(kWarps * 32, blocks_for(kStates)) ssd_kernel(const __grid_constant__ Parameters p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t parts = ceil_div<int64_t>(p.args.head_dim, kHeadDims);
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= p.args.heads * parts) return;
  Worker<kStates, kPlain>(p, static_cast<int>(blockIdx.y), item / parts, item % parts * kHeadDims).run();
}

bool is_plain(const SsdArgs& args) {
  const auto is_float = [](const Input& from) { return from.dtype == DType::f32; };
  return is_float(args.x) && is_float(args.dt) && is_float(args.b) && is_float(args.c) &&
         (!args.z.data || is_float(args.z)) && has_fours(args.b) && has_fours(args.c) && args.state_size % 4 == 0;
}

template <int kStates>
Status launch_states(const Parameters& p, Stream stream) {
  const int64_t items = p.args.heads * ceil_div<int64_t>(p.args.head_dim, kHeadDims);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(items, kWarps)), static_cast<unsigned>(p.args.batch.count)),
      .block = dim3(kWarps * 32)};
  return is_plain(p.args) ? launch(ssd_kernel<kStates, true>, shape, stream, p)
                          : launch(ssd_kernel<kStates, false>, shape, stream, p);
}

}  // namespace

size_t ssd_workspace(const SsdArgs& args) noexcept { return ssd_chunks_workspace(args); }

Status ssd(const SsdArgs& args, Stream stream) noexcept {
  if (args.groups < 1 || args.heads % args.groups != 0 || args.state_size < 1 || args.state_size > kMaxSsdState) {
    return Status::invalid_value;
  }
  if (args.batch.count == 0 || args.batch.max_rows == 0 || args.heads == 0) return Status::ok;
  const size_t bytes = ssd_workspace(args);
  if (args.workspace.bytes < bytes) return Status::invalid_value;
  Parameters p{.args = args, .below = INT_MAX};
  if (bytes > 0) {
    // Where others are in the batch, few tokens are quicker one after the other.
    p.below = args.batch.count > 1 ? kFewestChunkTokens : 0;
    const Status status = ssd_chunks(args, p.below, stream);
    if (status != Status::ok || p.below == 0) return status;
  }
  if (args.state_size <= 16) return launch_states<2>(p, stream);
  if (args.state_size <= 64) return launch_states<8>(p, stream);
  if (args.state_size <= 128) return launch_states<16>(p, stream);
  return launch_states<32>(p, stream);
}

}  // namespace hxq::cuda
