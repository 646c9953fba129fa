// State-space duality of many tokens by tensor cores. A block has kDims elements of a head's state in registers and
// goes through a segment in chunks. In a chunk, outputs are what is left of the state before, C h, and what the chunk's
// own tokens add, (C B^T, masked and decayed) x; then B^T x, decayed to the chunk's end, is added to the state. C, B
// and C B^T are the same for all heads of a group: a kernel before brings them into the form that is multiplied.
//
// Each number is two of binary16, divided by a power of two that fits its row or its tile of 16 x 16, and a product is
// three. Decays are powers of differences of sums: none is above 1, and none is divided by.

#include "kernels/cuda/ssd_chunks.cuh"
#include "kernels/cuda/ssd_chunks_memory.cuh"
#include "kernels/cuda/ssd_scores.cuh"

namespace hxq::cuda {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLeastLog = -512;  ///< of a decay to base 2: nothing is left long before
/// Of chunks: where batches ask for more, their segments stay whole.
constexpr size_t kMostBytes = size_t{256} << 20;

template <int kStates, int kChunk, int kBuffers>
class Worker {
  using Shape = ChunkShape<kStates, kChunk>;
  using Memory = ChunkMemory<kStates, kChunk, kBuffers>;
  static constexpr int kRowTiles = Shape::kRowTiles, kColTiles = Shape::kColTiles;

 public:
  __device__ Worker(const ChunkParameters& p, Memory& shared)
      : args_(p.args), shared_(shared), slices_(ceil_div(static_cast<int>(args_.head_dim), Shape::kDims)) {
    sequence_ = static_cast<int>(blockIdx.y);
    head_ = static_cast<int>(blockIdx.x) / slices_;
    first_dim_ = static_cast<int>(blockIdx.x) % slices_ * Shape::kDims;
    const RowRange segment = args_.batch.segments[sequence_];
    first_ = segment.begin;
    rows_ = is_taken(p, segment) ? segment.end - segment.begin : 0;
    if (rows_ == 0) return;
    const int group = head_ / static_cast<int>(args_.heads / args_.groups);
    from_ = chunk_of<kStates, kChunk>(p, sequence_, 0, group);
    chunks_ = ceil_div(rows_, kChunk);
    a_ = args_.a[head_], bias_ = args_.dt_bias[head_], d_ = args_.d[head_];
  }

  __device__ void run() {
    if (rows_ == 0) return;
    for (int k = 0; k < kBuffers; ++k) copy_scores(k), copy_inputs(k);
    load_x(0);
    if (warp() == 0) weigh_tokens(0);
    load_state();
    store_state_parts();
    for (int k = 0; k < chunks_; ++k) {
      load_z(k);
      wait_for_copies<2 * (kBuffers - 1)>();
      __syncthreads();  // scores, times and the state are there, and the inputs before have been read
      if (k > 0) copy_inputs(k - 1 + kBuffers);
      const float kept = fast_exp2(shared_.times[k % 2].log_decay(kChunk - 1));
      place_x(k);
      if (k + 1 < chunks_) load_x(k + 1);
      __syncthreads();
      write_outputs(k);
      if (k + 1 < chunks_ && warp() == 0) weigh_tokens(k + 1);
      wait_for_copies<2 * (kBuffers - 1)>();
      __syncthreads();  // inputs are there, and scores and the state have been read
      copy_scores(k + kBuffers);
      advance(k, kept);
      if (k + 1 < chunks_) store_state_parts();
    }
    store_state();
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int lane() { return thread() % 32; }
  __device__ static int warp() { return thread() / 32; }
  __device__ bool has_dim(int dim) const { return first_dim_ + dim < args_.head_dim; }
  __device__ int64_t column(int dim) const { return int64_t{head_} * args_.head_dim + first_dim_ + dim; }

  template <class T>
  __device__ static void copy(T& to, const T& from) {
    for (int i = thread(); i < static_cast<int>(sizeof(T) / 16); i += Shape::kThreads)
      copy_async<16>(reinterpret_cast<uint4*>(&to) + i, reinterpret_cast<const uint4*>(&from) + i);
  }
  __device__ void copy_scores(int k) {
    if (k < chunks_) copy(shared_.scores[k % kBuffers], from_[k * args_.groups].scores);
    end_copy_group();
  }
  __device__ void copy_inputs(int k) {
    if (k < chunks_) copy(shared_.inputs[k % kBuffers], from_[k * args_.groups].inputs);
    end_copy_group();
  }

  /// What decays a chunk, by one warp. Sums in double: a float would lose what neighbours of large sums differ by.
  __device__ void weigh_tokens(int k) {
    constexpr int kEach = kChunk / 32;
    ChunkTimes<kChunk>& times = shared_.times[k % 2];
    double log[kEach], sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int t = kEach * lane() + i;
      float delta = 0;
      if (k * kChunk + t < rows_) {
        const float dt = load_at(args_.dt, first_ + k * kChunk + t, head_);
        delta = fminf(fmaxf(softplus(dt + bias_), args_.dt_min), args_.dt_max);
      }
      times.delta[t] = delta;
      sum += fmaxf(delta * a_ * kLog2E, kLeastLog);
      log[i] = sum;
    }
    double before = sum;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const double other = __shfl_up_sync(kAllLanes, before, offset);
      if (lane() >= offset) before += other;
    }
    before -= sum;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int t = kEach * lane() + i;
      const double all = before + log[i], whole = floor(all);
      times.whole[t] = static_cast<float>(whole);
      times.rest[t] = static_cast<float>(all - whole);
    }
  }

  // A warp brings a tile of 16 tokens and 16 elements of x.
  __device__ static int x_token(int i) { return warp() / 2 * 16 + 4 * i + lane() / 8; }
  __device__ static int x_dim() { return warp() % 2 * 16 + lane() % 8 * 2; }

  __device__ void load_x(int k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = k * kChunk + x_token(i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        x_[i][j] = t < rows_ && has_dim(x_dim() + j) ? load_bits(args_.x, first_ + t, column(x_dim() + j)) : 0;
      }
    }
  }

  __device__ void place_x(int k) {
    const ChunkTimes<kChunk>& times = shared_.times[k % 2];
    float x[4][2], left[4], largest = 0, largest_left = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = x_token(i);
      left[i] = times.delta[t] * fast_exp2(times.log_decay(t, kChunk - 1)) * shared_.scores[k % kBuffers].b_scale[t];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        x[i][j] = element_of(x_[i][j], args_.x.dtype);
        largest = fmaxf(largest, fabsf(x[i][j]));
        largest_left = fmaxf(largest_left, fabsf(x[i][j] * left[i]));
      }
    }
    const float scale = scale_for(max_lanes(largest)), left_scale = scale_for(max_lanes(largest_left));
    const float inverse = inverse_of_scale(scale), left_inverse = inverse_of_scale(left_scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      store_parts(shared_.x, x_token(i), x_dim(), x[i][0], x[i][1], inverse);
      store_parts(shared_.last, x_token(i), x_dim(), x[i][0] * left[i], x[i][1] * left[i], left_inverse);
    }
    if (lane() == 0) {
      shared_.x_scale[warp() / 2][warp() % 2] = scale;
      shared_.last_scale[warp() / 2][warp() % 2] = left_scale;
    }
  }

  // A warp has a tile of 16 tokens and 16 elements of the outputs.
  __device__ static int token(int h) { return warp() / 2 * 16 + 8 * h + ResultPlace(lane()).row; }
  __device__ static int dim(int n) { return warp() % 2 * 16 + 8 * n + ResultPlace(lane()).col; }

  /// body(h, n, i, row, column) for each output of the lane that there is.
  template <class Body>
  __device__ void for_outputs(int k, const Body& body) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = k * kChunk + token(h);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (t < rows_ && has_dim(dim(n) + i)) body(h, n, i, first_ + t, column(dim(n) + i));
        }
      }
    }
  }

  __device__ void load_z(int k) {
    if (!args_.z.data) return;
    for_outputs(
        k, [&](int h, int n, int i, int64_t row, int64_t col) { z_[n][2 * h + i] = load_bits(args_.z, row, col); });
  }

  __device__ void write_outputs(int k) {
    const auto& scores = shared_.scores[k % kBuffers];
    const ChunkTimes<kChunk>& times = shared_.times[k % 2];
    float sum[2][4] = {};
    add_state(scores, sum);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float factor = fast_exp2(times.log_decay(token(h))) * scores.c_scale[token(h)];
#pragma unroll
      for (int n = 0; n < 2; ++n) sum[n][2 * h] *= factor, sum[n][2 * h + 1] *= factor;
    }
    add_tokens(scores, times, sum);
    for_outputs(k, [&](int h, int n, int i, int64_t row, int64_t col) {
      float y = sum[n][2 * h + i];
      if (args_.z.data) y *= silu(element_of(z_[n][2 * h + i], args_.z.dtype));
      store_at(args_.y, row, col, y);
    });
  }

  /// sum += C h
  __device__ void add_state(const ChunkScores<kStates, kChunk>& scores, float (&sum)[2][4]) const {
    const BlockPlace place(lane());
    const int row_tile = warp() / 2, col_tile = warp() % 2;
#pragma unroll
    for (int n = 0; n < Shape::kStateTiles; ++n) {
      uint32_t a[2][1][4], b[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        load_blocks(a[part][0], &scores.c[part][16 * row_tile + place.row][16 * n + place.col]);
        load_blocks_transposed(b[part], &shared_.state[part][16 * n + place.row][16 * col_tile + place.col]);
      }
      const float scale = shared_.state_scale[n][col_tile];
      add_step(sum, a, b, {scale, scale});
    }
  }

  /// sum += what the chunk's tokens up to each add
  __device__ void add_tokens(const ChunkScores<kStates, kChunk>& scores, const ChunkTimes<kChunk>& times,
                             float (&sum)[2][4]) const {
    const BlockPlace place(lane());
    const int row_tile = warp() / 2, col_tile = warp() % 2;
#pragma unroll
    for (int k = 0; k < Shape::kTokenTiles; ++k) {
      if (k > row_tile) break;
      uint32_t a[2][1][4], b[2][4];
      float factor[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = token(h);
        float weight[2][2], largest = 0;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int first = 16 * k + 8 * n + ResultPlace(lane()).col;
          const auto score = *reinterpret_cast<const float2*>(&scores.score[t][first]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int s = first + i;
            float& w = weight[n][i];
            w = s > t ? 0.0f : (i == 0 ? score.x : score.y) * times.delta[s] * fast_exp2(times.log_decay(s, t));
            if (s == t) w += d_;
            largest = fmaxf(largest, fabsf(w));
          }
        }
        const float scale = scale_for(max_lanes(largest, 4)), inverse = inverse_of_scale(scale);
        factor[h] = scale * shared_.x_scale[k][col_tile];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t parts[2];
          split(weight[n][0] * inverse, weight[n][1] * inverse, parts);
#pragma unroll
          for (int part = 0; part < 2; ++part) a[part][0][left_register(n, h)] = parts[part];
        }
      }
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        load_blocks_transposed(b[part], &shared_.x[part][16 * k + place.row][16 * col_tile + place.col]);
      }
      add_step(sum, a, b, factor);
    }
  }

  /// The state after the chunk.
  __device__ void advance(int k, float kept) {
    const auto& from = shared_.inputs[k % kBuffers].b;
    const TransposedPlace left(lane());
    const BlockPlace right(lane());
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) state_[m][c][i / 4][i % 4] *= kept;
      }
    }
#pragma unroll
    for (int t = 0; t < Shape::kTokenTiles; ++t) {
      uint32_t b[kColTiles][2][4];
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          load_blocks_transposed(b[c][part], &shared_.last[part][16 * t + right.row][16 * col_tile(c) + right.col]);
        }
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        uint32_t a[2][1][4];
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          load_blocks_transposed(a[part][0], &from[part][16 * t + left.row][16 * row_tile(m) + left.col]);
        }
#pragma unroll
        for (int c = 0; c < kColTiles; ++c) {
          const float scale = shared_.last_scale[t][col_tile(c)];
          add_step(state_[m][c], a, b[c], {scale, scale});
        }
      }
    }
  }

  // A warp's tiles of the state.
  __device__ static int row_tile(int m) { return StateShare<kStates, kChunk>(warp()).row_tile + m; }
  __device__ static int col_tile(int c) { return StateShare<kStates, kChunk>(warp()).col_tile + c; }

  /// body(value, place) for each element of the lane; outside(value) where the matrix has none.
  template <class Inside, class Outside>
  __device__ void for_state(const Inside& inside, const Outside& outside) {
    const ResultPlace result(lane());
    const int64_t head = int64_t{head_} * args_.state_size;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int n = 16 * row_tile(m) + i % 4 / 2 * 8 + result.row;
          const int dim = 16 * col_tile(c) + i / 4 * 8 + result.col + i % 2;
          float& value = state_[m][c][i / 4][i % 4];
          if (n < args_.state_size && has_dim(dim)) {
            inside(value, (head + n) * args_.head_dim + first_dim_ + dim);
          } else {
            outside(value);
          }
        }
      }
    }
  }
  __device__ void load_state() {
    const auto* from = static_cast<const float*>(args_.states[sequence_]);
    for_state([&](float& value, int64_t at) { value = from[at]; }, [](float& value) { value = 0; });
  }
  __device__ void store_state() {
    auto* to = static_cast<float*>(args_.states[sequence_]);
    for_state([&](float& value, int64_t at) { to[at] = value; }, [](float&) {});
  }

  __device__ void store_state_parts() {
    const ResultPlace result(lane());
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
        float largest = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(state_[m][c][i / 4][i % 4]));
        const float scale = scale_for(max_lanes(largest)), inverse = inverse_of_scale(scale);
        if (lane() == 0) shared_.state_scale[row_tile(m)][col_tile(c)] = scale;
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const float* pair = &state_[m][c][i / 4][i % 4];
          store_parts(shared_.state, 16 * row_tile(m) + i % 4 / 2 * 8 + result.row,
                      16 * col_tile(c) + i / 4 * 8 + result.col, pair[0], pair[1], inverse);
        }
      }
    }
  }

  const SsdArgs& args_;
  Memory& shared_;
  const int slices_;  ///< of a head, each a block's
  int sequence_, head_, first_dim_;
  int first_, rows_, chunks_;                     ///< of the segment
  const Chunk<kStates, kChunk>* from_ = nullptr;  ///< the group's first chunk
  float a_, bias_, d_;
  uint32_t x_[4][2], z_[2][4];  ///< bits of x of the next chunk, and z of this one
  float state_[kRowTiles][kColTiles][2][4];
};

template <int kStates, int kChunk, int kBuffers>
__global__ void __launch_bounds__(ChunkShape<kStates, kChunk>::kThreads)
    ssd_chunks_kernel(const __grid_constant__ ChunkParameters p) {
  extern __shared__ __align__(16) unsigned char ssd_memory[];
  let_successors_begin();
  wait_for_predecessors();
  Worker<kStates, kChunk, kBuffers>(p, *reinterpret_cast<ChunkMemory<kStates, kChunk, kBuffers>*>(ssd_memory)).run();
}

template <int kStates, int kChunk, int kBuffers>
struct Kernels {
  using Shape = ChunkShape<kStates, kChunk>;
  static constexpr size_t kSharedBytes = sizeof(ChunkMemory<kStates, kChunk, kBuffers>);
  static_assert(kSharedBytes >= sizeof(Chunk<kStates, kChunk>));

  static size_t workspace(const SsdArgs& args) {
    const auto count = static_cast<size_t>(slots_of_runs(args.batch, kChunk) * args.groups);
    return count * sizeof(Chunk<kStates, kChunk>);
  }

  static Status start(const ChunkParameters& p, Stream stream) {
    const SsdArgs& args = p.args;
    const auto count = static_cast<unsigned>(args.batch.count);
    const auto chunks = static_cast<unsigned>(ceil_div(args.batch.max_rows, kChunk));
    const auto slices = static_cast<unsigned>(args.heads * ceil_div<int64_t>(args.head_dim, Shape::kDims));
    const Status status = launch(ssd_scores_kernel<kStates, kChunk>,
                                 {.grid = dim3(chunks, count, static_cast<unsigned>(args.groups)),
                                  .block = dim3(Shape::kThreads),
                                  .shared_bytes = sizeof(Chunk<kStates, kChunk>)},
                                 stream, p);
    if (status != Status::ok) return status;
    return launch(ssd_chunks_kernel<kStates, kChunk, kBuffers>,
                  {.grid = dim3(slices, count), .block = dim3(Shape::kThreads), .shared_bytes = kSharedBytes}, stream,
                  p);
  }
};

/// Calls with the first kernels that fit a block's shared memory; gives `none` if there are none.
template <class T, class Body>
T with_kernels(const SsdArgs& args, T none, const Body& body) {
  const auto room = static_cast<size_t>(current_device().shared_bytes);
  const auto first_of = [&]<class... K>(K... kernels) {
    T result = none;
    ((K::kSharedBytes <= room && (result = body(kernels), true)) || ...);
    return result;
  };
  if (args.state_size <= 64) return first_of(Kernels<64, 64, 2>(), Kernels<64, 64, 1>());
  if (args.state_size <= 128) return first_of(Kernels<128, 64, 2>(), Kernels<128, 64, 1>(), Kernels<128, 32, 1>());
  return first_of(Kernels<256, 64, 1>(), Kernels<256, 32, 1>());
}

}  // namespace

size_t ssd_chunks_workspace(const SsdArgs& args) noexcept {
  if (args.batch.max_rows < kFewestChunkTokens) return 0;
  const size_t bytes = with_kernels(args, size_t{0}, [&](auto kernels) { return kernels.workspace(args); });
  return bytes <= kMostBytes ? bytes : 0;
}

Status ssd_chunks(const SsdArgs& args, int fewest, Stream stream) noexcept {
  const ChunkParameters p{.args = args, .fewest = fewest, .chunks = args.workspace.data};
  return with_kernels(args, Status::not_supported, [&](auto kernels) { return kernels.start(p, stream); });
}

}  // namespace hxq::cuda
