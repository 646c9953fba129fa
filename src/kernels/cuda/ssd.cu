// State-space duality, token after token. A warp has kHeadDims elements of a head: lane l the states
// l / 4 * kStates and following of elements l % 4 * 2 and one further. Nothing is shared between warps.

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kHeadDims = 8;

template <int kStates>
struct Token {
  float b[kStates], c[kStates];
  float x[2];
  float dt;
};

template <int kStates>
class Worker {
 public:
  __device__ Worker(const SsdArgs& p, int sequence, int64_t head, int64_t first_dim)
      : p_(p),
        segment_(p.batch.segments[sequence]),
        rows_(segment_.end - segment_.begin),
        head_(head),
        group_(head / (p.heads / p.groups)),
        dim_(first_dim + threadIdx.x % 4 * 2),
        state_begin_(static_cast<int>(threadIdx.x % 32 / 4) * kStates),
        state_(static_cast<float*>(p.states[sequence]) + head * p.state_size * p.head_dim) {}

  __device__ void run() {
    if (rows_ == 0) return;
    float s[kStates][2];
    for_states([&](int n, int i, int64_t at) { s[n][i] = state_[at]; }, [&](int n, int i) { s[n][i] = 0; });
    const float a = p_.a[head_], bias = p_.dt_bias[head_];
    Token<kStates> next = load(0);
    for (int t = 0; t < rows_; ++t) {
      const Token<kStates> token = next;
      if (t + 1 < rows_) next = load(t + 1);
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
      write(t, token, y);
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
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      const bool is_there = state_begin_ + n < p_.state_size;
      const int64_t at = group_ * p_.state_size + state_begin_ + n;
      token.b[n] = is_there ? load_at(p_.b, row, at) : 0.0f;
      token.c[n] = is_there ? load_at(p_.c, row, at) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      token.x[i] = dim_ + i < p_.head_dim ? load_at(p_.x, row, head_ * p_.head_dim + dim_ + i) : 0.0f;
    token.dt = load_at(p_.dt, row, head_);
    return token;
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
      if (p_.z.data) sum *= silu(load_at(p_.z, row, at));
      store_at(p_.y, row, at, sum);
    }
  }

  const SsdArgs& p_;
  const RowRange segment_;
  const int rows_;
  const int64_t head_, group_, dim_;
  const int state_begin_;
  float* const state_;
};

template <int kStates>
__global__ void __launch_bounds__(kWarps * 32) ssd_kernel(const __grid_constant__ SsdArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t parts = ceil_div<int64_t>(p.head_dim, kHeadDims);
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= p.heads * parts) return;
  Worker<kStates>(p, static_cast<int>(blockIdx.y), item / parts, item % parts * kHeadDims).run();
}

}  // namespace

Status ssd(const SsdArgs& args, Stream stream) noexcept {
  if (args.groups < 1 || args.heads % args.groups != 0 || args.state_size < 1 || args.state_size > kMaxSsdState) {
    return Status::invalid_value;
  }
  if (args.batch.count == 0 || args.batch.max_rows == 0 || args.heads == 0) return Status::ok;
  const int64_t items = args.heads * ceil_div<int64_t>(args.head_dim, kHeadDims);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(items, kWarps)), static_cast<unsigned>(args.batch.count)),
      .block = dim3(kWarps * 32)};
  if (args.state_size <= 16) return launch(ssd_kernel<2>, shape, stream, args);
  if (args.state_size <= 64) return launch(ssd_kernel<8>, shape, stream, args);
  if (args.state_size <= 128) return launch(ssd_kernel<16>, shape, stream, args);
  return launch(ssd_kernel<32>, shape, stream, args);
}

}  // namespace hxq::cuda
