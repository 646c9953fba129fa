// One token of Mamba-1 between its projections, for each sequence a cluster of blocks. A block owns channels: it
// decodes its columns of x_proj and its rows of dt_proj to shared memory while the kernel before still works. Then it
// needs of the other blocks only what their channels add to dt, B and C, which they write to its shared memory.

#include <cooperative_groups.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/mamba_step.h"

namespace hxq::cuda {
namespace {

constexpr int kMostBlocks = 16;  ///< of a cluster
constexpr int kMostTaps = 4;
constexpr int kStates = 16;
constexpr int kOwnStates = kStates / 2;  ///< of a thread: two have a channel
constexpr int kRowsAtOnce = 8;           ///< of x_proj, that a warp sums up together
constexpr int kMostThreads = 1024;
constexpr int kCopies = 8;  ///< of a codebook, so that fewer lookups of a warp meet in a bank

struct Parameters {
  MambaStepArgs args;
  int blocks;    ///< of a cluster
  int channels;  ///< of a block, the last may have fewer
};

/// What a block keeps in shared memory.
struct Shared {
  float* x_proj;     // [x_proj.rows, channels]
  float* dt_proj;    // [dt_proj.cols, dt_stride]
  float* u;          // [channels]: the convolution's output
  float* partial;    // [blocks, x_proj.rows]: what each block's channels add to dt, B and C
  float* dbc;        // [x_proj.rows]: dt, B, C
  float* codebook;   // [2, 256, kCopies]
  uint32_t* begins;  // [x_proj.rows + 1] and then [channels + 1]: where the outliers of rows begin
  int dt_stride;

  /// Threads of a warp read 16 adjacent elements of two rows: those lie in different banks.
  HXQ_HOST_DEVICE static int dt_stride_of(int channels) { return ceil_div(channels, 32) * 32 + 16; }
  HXQ_HOST_DEVICE static int rows_of(const Parameters& p) { return static_cast<int>(p.args.x_proj.rows); }

  __device__ Shared(const Parameters& p, float* memory) : dt_stride(dt_stride_of(p.channels)) {
    const int rows = rows_of(p);
    codebook = memory;
    x_proj = codebook + 2 * 256 * kCopies;
    dt_proj = x_proj + rows * p.channels;
    u = dt_proj + static_cast<int>(p.args.dt_proj.cols) * dt_stride;
    partial = u + p.channels;
    dbc = partial + p.blocks * rows;
    begins = reinterpret_cast<uint32_t*>(dbc + rows);
  }
  static size_t bytes(const Parameters& p) {
    const int rows = rows_of(p), begins = rows + p.channels + 2;
    return sizeof(float) * static_cast<size_t>(2 * 256 * kCopies + rows * p.channels +
                                               static_cast<int>(p.args.dt_proj.cols) * dt_stride_of(p.channels) +
                                               p.channels + p.blocks * rows + rows + begins);
  }
};

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int threads() { return static_cast<int>(blockDim.x); }

/// The part of a matrix that a block decodes, rows and columns from `first_row` and `first_col` on, cols a multiple of
/// 4. Memory answers late, and this decides how soon the block is ready: all that is needed is asked for at once, and
/// only outliers have to be found before they are asked for. `kByRows`: adjacent threads take adjacent rows, otherwise
/// adjacent words of a row. The weights go to `at(row, col)`, counted from the part's first.
template <bool kByRows>
class Decoder {
 public:
  __device__ Decoder(const CodebookWeight& weight, int first_row, int rows, int first_col, int cols, uint32_t* begins)
      : weight_(weight), first_row_(first_row), rows_(rows), first_col_(first_col), cols_(cols), begins_(begins) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) word_[i] = number(i) < words() ? load(number(i)) : 0;
    if (!weight_.outlier_row_begin) return;
    for (int i = thread(); i <= rows_; i += threads())
      copy_async<4>(begins_ + i, weight_.outlier_row_begin + first_row_ + i);
  }

  /// Asks for the outliers: `begins` is there.
  __device__ void find_outliers() {
    if (!weight_.outlier_row_begin) return;
    outlier_ = begins_[0] + threadIdx.x;
    if (outlier_ >= begins_[rows_]) return;
    col_ = __ldg(weight_.outlier_col + outlier_);
    change_ = __ldg(weight_.outlier_change + outlier_);
  }

  template <class At>
  __device__ void decode(const float* codebook, const At& at) const {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (number(i) < words()) decode(word_[i], number(i), codebook, at);
    }
#pragma unroll 1
    for (int i = kTogether; number(i) < words(); ++i) decode(load(number(i)), number(i), codebook, at);
  }

  /// After all weights are decoded.
  template <class At>
  __device__ void add_outliers(const At& at) const {
    if (!weight_.outlier_row_begin) return;
    uint32_t col = col_;
    float change = change_;
    for (uint32_t i = outlier_; i < begins_[rows_]; i += blockDim.x) {
      if (i != outlier_) {
        col = __ldg(weight_.outlier_col + i);
        change = __ldg(weight_.outlier_change + i);
      }
      const int own_col = static_cast<int>(col) - first_col_;
      if (own_col < 0 || own_col >= cols_) continue;
      int row = 0;  // the last that begins at i or before
      for (int step = kMostThreads; step > 0; step /= 2) {
        if (row + step < rows_ && begins_[row + step] <= i) row += step;
      }
      at(row, own_col) += change;
    }
  }

 private:
  static constexpr int kTogether = 8;  ///< words of a thread that are asked for ahead

  __device__ int words() const { return rows_ * cols_ / 4; }
  __device__ static int number(int i) { return thread() + i * threads(); }
  __device__ int row_of(int n) const { return kByRows ? n % rows_ : n / (cols_ / 4); }
  __device__ int col_of(int n) const { return (kByRows ? n / rows_ : n % (cols_ / 4)) * 4; }
  __device__ unsigned load(int n) const {
    const auto* bytes = static_cast<const unsigned char*>(weight_.indices);
    return __ldg(
        reinterpret_cast<const unsigned*>(bytes + (first_row_ + row_of(n)) * weight_.cols + first_col_ + col_of(n)));
  }
  template <class At>
  __device__ void decode(unsigned word, int n, const float* codebook, const At& at) const {
    const int row = row_of(n), col = col_of(n);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float value = codebook[(word >> 8 * j & 0xff) * kCopies + threadIdx.x % kCopies];
#pragma unroll 1
      for (int r = 0; r < weight_.rank; ++r) {
        value = fmaf(__ldg(weight_.low_rank_u + (first_row_ + row) * weight_.rank + r),
                     __ldg(weight_.low_rank_vt + r * weight_.cols + first_col_ + col + j), value);
      }
      at(row, col + j) = value;
    }
  }

  const CodebookWeight& weight_;
  const int first_row_, rows_, first_col_, cols_;
  uint32_t* const begins_;  // [rows_ + 1]: where the outliers of the part's rows begin
  unsigned word_[kTogether];
  uint32_t outlier_ = 0, col_ = 0;  ///< the thread's first outlier
  float change_ = 0;
};

/// One thread's channel, and its half of the channel's states.
class Channel {
 public:
  /// Reads weights alone.
  __device__ Channel(const MambaStepArgs& args, int64_t channel, bool is_there)
      : args_(args), c_(channel), half_(static_cast<int>(threadIdx.x % 2)), is_there_(is_there) {
    const ConvArgs& conv = args.conv;
    const ScanArgs& scan = args.scan;
#pragma unroll
    for (int j = 0; j < kMostTaps; ++j) {
      const int tap = j - (kMostTaps - static_cast<int>(conv.width));
      tap_[j] = tap >= 0 && is_there ? __ldg(conv.weight + tap * conv.channels + c_) : 0.0f;
    }
    conv_bias_ = conv.bias && is_there ? __ldg(conv.bias + c_) : 0.0f;
    dt_bias_ = scan.dt_bias && is_there ? __ldg(scan.dt_bias + c_) : 0.0f;
    skip_ = is_there ? __ldg(scan.d + c_) : 0.0f;
#pragma unroll
    for (int i = 0; i < kOwnStates; ++i) {
      a_[i] = has_state(i) ? __ldg(scan.a + state_at(i)) * 1.44269504f : 0.0f;  // for exp2
    }
  }

  /// Reads what the kernels before have written. Both threads of the channel get the convolution's output.
  __device__ float convolve(int sequence, int64_t row) {
    const ConvArgs& conv = args_.conv;
    states_ = static_cast<float*>(args_.scan.states[sequence]);
    auto* past = static_cast<float*>(conv.states[sequence]);
    const auto kept = static_cast<int>(conv.state_rows);
    float x[kMostTaps] = {};
    if (is_there_) {
#pragma unroll
      for (int j = 0; j < kMostTaps - 1; ++j) {
        const int t = kept - (kMostTaps - 1) + j;
        if (t >= 0) x[j] = past[t * conv.channels + c_];
      }
      x[kMostTaps - 1] = load_at(conv.x, row, c_);
      z_ = load_at(args_.scan.z, row, c_);
    }
#pragma unroll
    for (int i = 0; i < kOwnStates; ++i) h_[i] = has_state(i) ? states_[state_at(i)] : 0.0f;
    float sum = conv_bias_;
#pragma unroll
    for (int j = 0; j < kMostTaps; ++j) sum = fmaf(tap_[j], x[j], sum);
    u_ = silu(sum);
    __syncwarp();  // both have read the state
    if (is_there_ && half_ == 0) {
      for (int t = 0; t + 1 < kept; ++t) past[t * conv.channels + c_] = past[(t + 1) * conv.channels + c_];
      if (kept > 0) past[(kept - 1) * conv.channels + c_] = x[kMostTaps - 1];
    }
    return u_;
  }

  /// dt, B and C are in `dbc`; `dt_column`: the channel's row of dt_proj, its elements dt_stride apart.
  __device__ void scan(const float* dbc, const float* dt_column, int dt_stride, int64_t row) {
    const auto rank = static_cast<int>(args_.dt_proj.cols);
    const auto size = static_cast<int>(args_.scan.state_size);
    float dt = 0;
#pragma unroll 8
    for (int j = half_; j < rank; j += 2) dt = fmaf(dt_column[j * dt_stride], dbc[j], dt);
    dt += __shfl_xor_sync(kAllLanes, dt, 1);
    const float delta = softplus(dt + dt_bias_), delta_u = delta * u_;
    float y = 0;
#pragma unroll
    for (int i = 0; i < kOwnStates; ++i) {
      if (!has_state(i)) continue;
      const int n = 2 * i + half_;
      h_[i] = fmaf(fast_exp2(delta * a_[i]), h_[i], delta_u * dbc[rank + n]);
      states_[state_at(i)] = h_[i];
      y = fmaf(h_[i], dbc[rank + size + n], y);
    }
    y += __shfl_xor_sync(kAllLanes, y, 1);
    if (is_there_ && half_ == 0) store_at(args_.scan.y, row, c_, fmaf(skip_, u_, y) * silu(z_));
  }

 private:
  __device__ bool has_state(int i) const {
    return is_there_ && 2 * i + half_ < static_cast<int>(args_.scan.state_size);
  }
  __device__ int64_t state_at(int i) const { return (2 * i + half_) * args_.scan.channels + c_; }

  const MambaStepArgs& args_;
  const int64_t c_;
  const int half_;
  const bool is_there_;
  float* states_ = nullptr;  // [state_size, channels]
  float tap_[kMostTaps], conv_bias_, dt_bias_, skip_, z_ = 0, u_ = 0;
  float a_[kOwnStates], h_[kOwnStates];
};

/// What the block's channels add to dt, B and C goes to all blocks of the cluster.
__device__ inline void share_products(const Parameters& p, const Shared& shared, int own) {
  const auto cluster = cooperative_groups::this_cluster();
  const auto rank = static_cast<int>(cluster.block_rank());
  const int lane = static_cast<int>(threadIdx.x % 32), warps = static_cast<int>(blockDim.x / 32);
  const int rows = Shared::rows_of(p);
  for (int first = static_cast<int>(threadIdx.x / 32); first < rows; first += warps * kRowsAtOnce) {
    float sum[kRowsAtOnce] = {};
    for (int c = lane; c < own; c += 32) {
      const float u = shared.u[c];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const int row = first + r * warps;
        if (row < rows) sum[r] = fmaf(shared.x_proj[row * p.channels + c], u, sum[r]);
      }
    }
    constexpr int kLanes = 32 / kRowsAtOnce;  ///< that get the same row's sum
    const float total = sum_lanes_each(sum);
    const int row = first + lane / kLanes * warps;
    if (row >= rows) continue;
    for (int to = lane % kLanes; to < p.blocks; to += kLanes) {
      *cluster.map_shared_rank(shared.partial + rank * rows + row, to) = total;
    }
  }
}

__global__ void __launch_bounds__(kMostThreads) mamba_step_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(16) float mamba_step_memory[];
  const auto cluster = cooperative_groups::this_cluster();
  let_successors_begin();
  const MambaStepArgs& args = p.args;
  const Shared shared(p, mamba_step_memory);
  const int sequence = static_cast<int>(blockIdx.x) / p.blocks;
  const int first = min(static_cast<int>(cluster.block_rank()) * p.channels, static_cast<int>(args.conv.channels));
  const int own = max(min(p.channels, static_cast<int>(args.conv.channels) - first), 0);
  const int mine = thread() / 2;
  const int x_rows = Shared::rows_of(p), stride = p.channels;
  Decoder<false> x_proj(args.x_proj, 0, x_rows, first, own, shared.begins);
  Decoder<true> dt_proj(args.dt_proj, first, own, 0, static_cast<int>(args.dt_proj.cols), shared.begins + x_rows + 1);
  for (int i = thread(); i < 2 * 256; i += threads()) {
    const CodebookWeight& weight = i < 256 ? args.x_proj : args.dt_proj;
    const float level = i % 256 < weight.k ? __ldg(weight.codebook + i % 256) : 0.0f;
    auto* copies = reinterpret_cast<float4*>(shared.codebook + i * kCopies);
#pragma unroll
    for (int c = 0; c < kCopies / 4; ++c) copies[c] = make_float4(level, level, level, level);
  }
  Channel channel(args, first + min(mine, max(own - 1, 0)), mine < own);
  end_copy_group();
  wait_for_copies<0>();
  __syncthreads();
  if (own > 0) {
    const auto at_x = [&](int row, int col) -> float& { return shared.x_proj[row * stride + col]; };
    const auto at_dt = [&](int row, int col) -> float& { return shared.dt_proj[col * shared.dt_stride + row]; };
    x_proj.find_outliers();
    dt_proj.find_outliers();
    x_proj.decode(shared.codebook, at_x);
    dt_proj.decode(shared.codebook + 256 * kCopies, at_dt);
    __syncthreads();
    x_proj.add_outliers(at_x);
    dt_proj.add_outliers(at_dt);
  }
  cluster.sync();  // all blocks run, and what they decoded is there
  const RowRange segment = args.batch.segments[sequence];
  wait_for_predecessors();
  if (segment.begin == segment.end) return;  // so do the cluster's other blocks

  const float u = channel.convolve(sequence, segment.begin);
  if (mine < own && threadIdx.x % 2 == 0) shared.u[mine] = u;
  __syncthreads();
  share_products(p, shared, own);
  cluster.sync();
  for (int row = static_cast<int>(threadIdx.x); row < Shared::rows_of(p); row += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int from = 0; from < p.blocks; ++from) sum += shared.partial[from * Shared::rows_of(p) + row];
    shared.dbc[row] = sum;
  }
  __syncthreads();
  channel.scan(shared.dbc, shared.dt_proj + min(mine, max(own - 1, 0)), shared.dt_stride, segment.begin);
}

#else

__global__ void mamba_step_kernel(const __grid_constant__ Parameters) {}

#endif

bool is_readable(const CodebookWeight& weight) {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && !weight.channel_scales && weight.cols % 4 == 0 &&
         reinterpret_cast<uintptr_t>(weight.indices) % 4 == 0;
}

Parameters parameters_of(const MambaStepArgs& args) {
  Parameters p{.args = args, .blocks = args.conv.channels >= 1024 ? kMostBlocks : kMostBlocks / 2};
  p.channels = static_cast<int>(ceil_div<int64_t>(ceil_div<int64_t>(args.conv.channels, p.blocks), 16) * 16);
  return p;
}

/// Two for each channel, but enough to decode quickly.
int threads_of(const Parameters& p) {
  const int needed = ceil_div(2 * p.channels, 32) * 32;
  return needed < 512 ? 512 : needed;
}

}  // namespace

bool supports_mamba_step(const MambaStepArgs& args) noexcept {
  const ConvArgs& conv = args.conv;
  const ScanArgs& scan = args.scan;
  const bool fits = is_readable(args.x_proj) && is_readable(args.dt_proj) && args.batch.max_rows == 1 &&
                    conv.width >= 1 && conv.width <= kMostTaps && conv.state_rows >= conv.width - 1 &&
                    scan.state_size >= 1 && scan.state_size <= kStates && conv.channels == scan.channels &&
                    args.x_proj.cols == conv.channels && args.dt_proj.rows == conv.channels &&
                    args.x_proj.rows == args.dt_proj.cols + 2 * scan.state_size && conv.channels <= 1 << 20;
  const DeviceFacts device = current_device();
  if (!fits || device.compute_capability < 90 || device.compute_capability >= 120) return false;
  const Parameters p = parameters_of(args);
  // Every sequence decodes the matrices again: with many, products that read them once are faster.
  if (args.batch.count * p.blocks > 2 * device.multiprocessors) return false;
  constexpr size_t kMost = 226 * 1024;
  return 2 * p.channels <= kMostThreads && Shared::bytes(p) <= kMost;
}

Status mamba_step(const MambaStepArgs& args, Stream stream) noexcept {
  if (!supports_mamba_step(args)) return Status::invalid_value;
  if (args.batch.count == 0) return Status::ok;
  const Parameters p = parameters_of(args);
  return launch(mamba_step_kernel,
                {.grid = dim3(static_cast<unsigned>(args.batch.count * p.blocks)),
                 .block = dim3(static_cast<unsigned>(threads_of(p))),
                 .shared_bytes = Shared::bytes(p),
                 .cluster = p.blocks},
                stream, p);
}

}  // namespace hxq::cuda
