// One token of Mamba-1 between its projections, for each sequence a cluster of blocks. A block owns channels: it
// decodes its columns of x_proj and its rows of dt_proj to shared memory while the kernel before still works. Then it
// needs of the other blocks only what their channels add to dt, B and C, which they write to its shared memory.

#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/mamba_step.h"

namespace hxq::cuda {
namespace {

constexpr int kMostBlocks = 16;  ///< of a cluster
static_assert(kMostBlocks <= DeviceFacts::kMostBlocks);
constexpr int kMostTaps = 4;
constexpr int kStates = 16;
constexpr int kOwnStates = kStates / 2;  ///< of a thread: two have a channel
constexpr int kRowsAtOnce = 8;           ///< of x_proj, that a warp sums up together
constexpr int kMostThreads = 1024;
constexpr int kSearchStep = 1024;  ///< shared memory has room for fewer than twice as many rows
constexpr int kCopies = 8;         ///< of a codebook, so that fewer lookups of a warp meet in a bank

struct Parameters {
  MambaStepArgs args;
  int blocks;    ///< of a cluster
  int channels;  ///< of a block, the last ones may have fewer or none

  HXQ_HOST_DEVICE int rows() const { return static_cast<int>(args.x_proj.rows); }
};

/// Where what a block keeps in shared memory begins, in bytes.
struct Layout {
  uint32_t codebook = 0, x_proj, dt_proj, u, partial, dbc, begins, dt_bytes, bytes;
  int dt_stride;  ///< threads of a warp read 16 adjacent elements of two rows: those lie in different banks

  HXQ_HOST_DEVICE explicit Layout(const Parameters& p) : dt_stride(ceil_div(p.channels, 32) * 32 + 16) {
    const auto rows = static_cast<uint32_t>(p.rows()), channels = static_cast<uint32_t>(p.channels);
    const auto rank = static_cast<uint32_t>(p.args.dt_proj.cols);
    const uint32_t decoded_dt = 4 * rank * static_cast<uint32_t>(dt_stride), stored_x = rows * channels;
    x_proj = codebook + 4 * 2 * 256 * kCopies;
    dt_proj = x_proj + 4 * rows * channels;
    u = dt_proj + (decoded_dt > stored_x ? decoded_dt : stored_x);
    partial = u + 4 * channels;
    dbc = partial + 4 * static_cast<uint32_t>(p.blocks) * rows;
    begins = dbc + 4 * rows;
    dt_bytes = begins + 4 * (rows + channels + 2);
    bytes = dt_bytes + channels * rank;
  }
};

/// What a block keeps in shared memory.
struct Shared {
  float* codebook;          // [2, 256, kCopies]
  float* x_proj;            // [x_proj.rows, channels]
  float* dt_proj;           // [dt_proj.cols, dt_stride]
  float* u;                 // [channels]: the convolution's output
  float* partial;           // [blocks, x_proj.rows]: what each block's channels add to dt, B and C
  float* dbc;               // [x_proj.rows]: dt, B, C
  uint32_t* begins;         // [x_proj.rows + 1] and then [channels + 1]: where the outliers of rows begin
  unsigned char* dt_bytes;  // [channels, dt_proj.cols]: as stored
  unsigned char* x_bytes;   // [x_proj.rows, channels], likewise: where dt_proj comes when x_proj is decoded
  int dt_stride;

  __device__ Shared(const Layout& at, unsigned char* memory)
      : codebook(reinterpret_cast<float*>(memory + at.codebook)),
        x_proj(reinterpret_cast<float*>(memory + at.x_proj)),
        dt_proj(reinterpret_cast<float*>(memory + at.dt_proj)),
        u(reinterpret_cast<float*>(memory + at.u)),
        partial(reinterpret_cast<float*>(memory + at.partial)),
        dbc(reinterpret_cast<float*>(memory + at.dbc)),
        begins(reinterpret_cast<uint32_t*>(memory + at.begins)),
        dt_bytes(memory + at.dt_bytes),
        x_bytes(memory + at.dt_proj),
        dt_stride(at.dt_stride) {}
};

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int threads() { return static_cast<int>(blockDim.x); }

/// The part of a matrix that a block decodes, rows and columns from `first_row` and `first_col` on, cols a multiple of
/// 4. `kByRows`: adjacent threads take adjacent rows, otherwise adjacent words of a row. The weights go to
/// `at(row, col)`, counted from the part's first. All loops are short and stay loops: instructions come slower than
/// what they ask for.
template <bool kByRows>
class Decoder {
 public:
  /// Asks for the part's bytes, which go to `bytes`, [rows, cols], and for `begins`, [rows + 1].
  __device__ Decoder(const CodebookWeight& weight, int first_row, int rows, int first_col, int cols,
                     unsigned char* bytes, uint32_t* begins)
      : weight_(weight),
        first_row_(first_row),
        rows_(rows),
        first_col_(first_col),
        cols_(cols),
        bytes_(bytes),
        begins_(begins) {
    const auto* from = static_cast<const unsigned char*>(weight.indices);
    each_word([&](int row, int col) {
      copy_async<4>(bytes + row * cols + col, from + (first_row + row) * weight.cols + first_col + col);
    });
    if (!weight_.outlier_row_begin) return;
#pragma unroll 1
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

  /// `bytes` is there.
  template <class At>
  __device__ void decode(const float* codebook, const At& at) const {
    each_word([&](int row, int col) {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(bytes_ + row * cols_ + col);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        at(row, col + j) = codebook[(word >> 8 * j & 0xff) * kCopies + threadIdx.x % kCopies];
      }
#pragma unroll 1
      for (int r = 0; r < weight_.rank; ++r) {
        const float u = __ldg(weight_.low_rank_u + (first_row_ + row) * weight_.rank + r);
        const float* vt = weight_.low_rank_vt + r * weight_.cols + first_col_ + col;
#pragma unroll
        for (int j = 0; j < 4; ++j) at(row, col + j) = fmaf(u, __ldg(vt + j), at(row, col + j));
      }
    });
  }

  /// After all weights are decoded.
  template <class At>
  __device__ void add_outliers(const At& at) const {
    if (!weight_.outlier_row_begin) return;
    uint32_t col = col_;
    float change = change_;
#pragma unroll 1
    for (uint32_t i = outlier_; i < begins_[rows_]; i += blockDim.x) {
      if (i != outlier_) {
        col = __ldg(weight_.outlier_col + i);
        change = __ldg(weight_.outlier_change + i);
      }
      const int own_col = static_cast<int>(col) - first_col_;
      if (own_col < 0 || own_col >= cols_) continue;
      int row = 0;  // the last that begins at i or before
#pragma unroll 1
      for (int step = kSearchStep; step > 0; step /= 2) {
        if (row + step < rows_ && begins_[row + step] <= i) row += step;
      }
      at(row, own_col) += change;
    }
  }

 private:
  /// Calls `body(row, col)` for the words of the part that the thread has.
  template <class Body>
  __device__ void each_word(const Body& body) const {
    const int outer_end = kByRows ? cols_ / 4 : rows_, inner_end = kByRows ? rows_ : cols_ / 4;
#pragma unroll 1
    for (int outer = thread() / 32; outer < outer_end; outer += threads() / 32) {
#pragma unroll 1
      for (int inner = thread() % 32; inner < inner_end; inner += 32) {
        kByRows ? body(inner, outer * 4) : body(outer, inner * 4);
      }
    }
  }

  const CodebookWeight& weight_;
  const int first_row_, rows_, first_col_, cols_;
  unsigned char* const bytes_;
  uint32_t* const begins_;          ///< where the outliers of the part's rows begin
  uint32_t outlier_ = 0, col_ = 0;  ///< the thread's first outlier
  float change_ = 0;
};

/// One thread's channel, and its half of the channel's states.
class Channel {
 public:
  /// Reads weights alone.
  __device__ Channel(const MambaStepArgs& args, int64_t channel, bool is_there)
      : args_(args), c_(channel), half_(thread() % 2), is_there_(is_there) {
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
      a_[i] = has_state(i) ? __ldg(scan.a + state_at(i)) * kLog2E : 0.0f;
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
      x[kMostTaps - 1] = float_at(conv.x, row);
      z_ = float_at(args_.scan.z, row);
    }
#pragma unroll
    for (int i = 0; i < kOwnStates; ++i) h_[i] = has_state(i) ? states_[state_at(i)] : 0.0f;
    float sum = conv_bias_;
#pragma unroll
    for (int j = 0; j < kMostTaps; ++j) sum = fmaf(tap_[j], x[j], sum);
    u_ = silu(sum);
    __syncwarp();  // both have read the state
    if (is_there_ && half_ == 0) {
#pragma unroll 1
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
    if (!is_there_ || half_ == 1) return;
    static_cast<float*>(args_.scan.y.data)[row * args_.scan.y.stride + c_] = fmaf(skip_, u_, y) * silu(z_);
  }

 private:
  __device__ bool has_state(int i) const {
    return is_there_ && 2 * i + half_ < static_cast<int>(args_.scan.state_size);
  }
  /// The channel's element of a row.
  __device__ float float_at(const Input& x, int64_t row) const {
    return static_cast<const float*>(x.data)[row * x.stride + c_];
  }
  __device__ int64_t state_at(int i) const { return (2 * i + half_) * args_.scan.channels + c_; }

  const MambaStepArgs& args_;
  const int64_t c_;
  const int half_;  ///< of the states
  const bool is_there_;
  float* states_ = nullptr;  // [state_size, channels]
  float tap_[kMostTaps], conv_bias_, dt_bias_, skip_, z_ = 0, u_ = 0;
  float a_[kOwnStates], h_[kOwnStates];
};

/// What the block's channels add to dt, B and C goes to all blocks of the cluster.
__device__ inline void share_products(const Parameters& p, const Shared& shared, int own) {
  const auto cluster = cooperative_groups::this_cluster();
  const int lane = thread() % 32, warps = threads() / 32, rows = p.rows();
  float* const to = shared.partial + static_cast<int>(cluster.block_rank()) * rows;
#pragma unroll 1
  for (int first = thread() / 32; first < rows; first += warps * kRowsAtOnce) {
    float sum[kRowsAtOnce] = {};
#pragma unroll 1
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
#pragma unroll 1
    for (int block = lane % kLanes; block < p.blocks; block += kLanes) {
      *cluster.map_shared_rank(to + row, block) = total;
    }
  }
}

__global__ void __launch_bounds__(kMostThreads) mamba_step_kernel(const __grid_constant__ Parameters p) {
  extern __shared__ __align__(16) unsigned char mamba_step_memory[];
  const auto cluster = cooperative_groups::this_cluster();
  let_successors_begin();
  const MambaStepArgs& args = p.args;
  const Shared shared(Layout(p), mamba_step_memory);
  const int first_channel =
      min(static_cast<int>(cluster.block_rank()) * p.channels, static_cast<int>(args.conv.channels));
  const int own = max(min(p.channels, static_cast<int>(args.conv.channels) - first_channel), 0);
  const int x_rows = p.rows();
  Decoder<false> x_proj(args.x_proj, 0, x_rows, first_channel, own, shared.x_bytes, shared.begins);
  Decoder<true> dt_proj(args.dt_proj, first_channel, own, 0, static_cast<int>(args.dt_proj.cols), shared.dt_bytes,
                        shared.begins + x_rows + 1);
  end_copy_group();
#pragma unroll 1
  for (int i = thread(); i < 2 * 256; i += threads()) {
    const CodebookWeight& weight = i < 256 ? args.x_proj : args.dt_proj;
    const float level = i % 256 < weight.k ? __ldg(weight.codebook + i % 256) : 0.0f;
    auto* copies = reinterpret_cast<float4*>(shared.codebook + i * kCopies);
#pragma unroll
    for (int c = 0; c < kCopies / 4; ++c) copies[c] = make_float4(level, level, level, level);
  }
  const int sequence = static_cast<int>(blockIdx.x) / p.blocks, mine = thread() / 2;
  Channel channel(args, first_channel + min(mine, max(own - 1, 0)), mine < own);
  wait_for_copies<0>();
  __syncthreads();
  if (own > 0) {
    const auto at_x = [&](int row, int col) -> float& { return shared.x_proj[row * p.channels + col]; };
    const auto at_dt = [&](int row, int col) -> float& { return shared.dt_proj[col * shared.dt_stride + row]; };
    x_proj.find_outliers();
    dt_proj.find_outliers();
    x_proj.decode(shared.codebook, at_x);
    __syncthreads();  // of dt_proj nothing is written before
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
  if (mine < own && thread() % 2 == 0) shared.u[mine] = u;
  __syncthreads();
  share_products(p, shared, own);
  cluster.sync();
#pragma unroll 1
  for (int row = thread(); row < x_rows; row += threads()) {
    float sum = 0;
#pragma unroll 4
    for (int from = 0; from < p.blocks; ++from) sum += shared.partial[from * x_rows + row];
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
int threads_of(const Parameters& p) { return std::max(ceil_div(2 * p.channels, 32) * 32, 512); }

/// Of few sequences each block has a multiprocessor for itself: two would wait for each other's instructions.
size_t shared_bytes_of(const Parameters& p) {
  const DeviceFacts device = current_device();
  const size_t needed = Layout(p).bytes, alone = static_cast<size_t>(device.shared_bytes) / 2 + 1;
  const bool are_few = p.args.batch.count <= device.clusters[p.blocks];
  return are_few ? std::max(needed, alone) : needed;
}

}  // namespace

bool supports_mamba_step(const MambaStepArgs& args) noexcept {
  const ConvArgs& conv = args.conv;
  const ScanArgs& scan = args.scan;
  const bool are_floats = conv.x.dtype == DType::f32 && scan.z.dtype == DType::f32 && scan.y.dtype == DType::f32;
  const bool fits = are_floats && is_readable(args.x_proj) && is_readable(args.dt_proj) && args.batch.max_rows == 1 &&
                    conv.width >= 1 && conv.width <= kMostTaps && conv.state_rows >= conv.width - 1 &&
                    scan.state_size >= 1 && scan.state_size <= kStates && conv.channels == scan.channels &&
                    args.x_proj.cols == conv.channels && args.dt_proj.rows == conv.channels &&
                    args.x_proj.rows == args.dt_proj.cols + 2 * scan.state_size && conv.channels <= 1 << 20 &&
                    args.dt_proj.cols <= 1 << 16;
  const DeviceFacts device = current_device();
  if (!fits || device.compute_capability < 90 || device.compute_capability >= 120) return false;
  const Parameters p = parameters_of(args);
  // Every sequence decodes the matrices again: with many, products that read them once are faster.
  if (args.batch.count * p.blocks > 2 * device.multiprocessors) return false;
  constexpr size_t kMost = 226 * 1024;
  return 2 * p.channels <= kMostThreads && Layout(p).bytes <= kMost;
}

Status mamba_step(const MambaStepArgs& args, Stream stream) noexcept {
  if (!supports_mamba_step(args)) return Status::invalid_value;
  if (args.batch.count == 0) return Status::ok;
  const Parameters p = parameters_of(args);
  return launch(mamba_step_kernel,
                {.grid = dim3(static_cast<unsigned>(args.batch.count * p.blocks)),
                 .block = dim3(static_cast<unsigned>(threads_of(p))),
                 .shared_bytes = shared_bytes_of(p),
                 .cluster = p.blocks},
                stream, p);
}

}  // namespace hxq::cuda
