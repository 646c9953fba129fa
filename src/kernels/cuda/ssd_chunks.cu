// State-space duality of many tokens by tensor cores. A block has kDims elements of a head's state in registers and
// goes through a segment in chunks. In a chunk, outputs are what is left of the state before, C h, and what the chunk's
// own tokens add, (C B^T, masked and decayed) x; then B^T x, decayed to the chunk's end, is added to the state. C, B
// and C B^T are the same for all heads of a group: a kernel before brings them into the form that is multiplied.
//
// Within a chunk what is left of x at the end of its tile of 16 tokens serves all later tiles and the state; only the
// tiles on the diagonal are decayed one by one.
//
// Each number is two of binary16, divided by a power of two that fits its row or its tile of 16 x 16, and a product is
// three. Decays are powers of differences of sums: none is above 1, and none is divided by.

#include "kernels/cuda/ssd_chunks.cuh"
#include "kernels/cuda/ssd_chunks_preparer.cuh"
#include "kernels/cuda/ssd_scores.cuh"

namespace hxq::cuda {
namespace {

/// Of chunks: batches that ask for more go token by token.
constexpr size_t kMostBytes = size_t{256} << 20;

/// The warps that multiply.
template <int kStates, int kChunk, int kBuffers>
class Multiplier : ChunkBlock<kStates, kChunk, kBuffers> {
  using Block = ChunkBlock<kStates, kChunk, kBuffers>;
  using Block::args_, Block::shared_, Block::z_in_pairs_, Block::y_in_pairs_, Block::sequence_, Block::head_,
      Block::first_dim_, Block::first_, Block::rows_, Block::chunks_, Block::lane, Block::warp, Block::column,
      Block::dims_from, Block::begin_outputs, Block::begin_state;
  using typename Block::Shape;
  static constexpr int kRowTiles = Shape::kRowTiles, kColTiles = Shape::kColTiles;

 public:
  __device__ explicit Multiplier(const Block& block) : Block(block) {}

  __device__ void run() {
    load_state();
    store_state_parts();
    multiply_chunks();
    store_state();
  }

 private:
  __device__ void multiply_chunks() {
    __syncthreads();  // times of the first two chunks are there
#pragma unroll 1
    for (int k = 0; k < chunks_; ++k) {
      begin_outputs(k);
      load_z(k);
      write_outputs(k);
      begin_state(k);
      advance(k);
      if (k + 1 < chunks_) store_state_parts();
    }
  }

  // A warp has a tile of 16 tokens and 16 elements of the outputs.
  __device__ static int token_tile() { return warp() / Shape::kDimTiles; }
  __device__ static int dim_tile() { return warp() % Shape::kDimTiles; }
  __device__ static int token(int h) { return 16 * token_tile() + 8 * h + ResultPlace(lane()).row; }
  __device__ static int dim(int n) { return 16 * dim_tile() + 8 * n + ResultPlace(lane()).col; }

  __device__ void load_z(int k) {
    if (!args_.z.data) return;
    const int t = k * kChunk + token(0);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      load_pairs(args_.z, z_in_pairs_, (first_ + t) * args_.z.stride + column(dim(n)), 8 * args_.z.stride,
                 ceil_div(rows_ - t, 8), dims_from(dim(n)), z_[n]);
    }
  }

  __device__ void write_outputs(int k) {
    const auto& scores = shared_.scores[k % kBuffers];
    const ChunkTimes<kChunk>& times = shared_.times[k % 4];
    float sum[2][4] = {};
    add_state(scores, sum);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float factor = times.decay(token(h)) * scores.c_scale[token(h)];
#pragma unroll
      for (int n = 0; n < 2; ++n) sum[n][2 * h] *= factor, sum[n][2 * h + 1] *= factor;
    }
    add_earlier_tokens(scores, times, shared_.x[k % 2], sum);
    add_tile(scores, times, shared_.x[k % 2], sum);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (k * kChunk + token(h) >= rows_) break;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float y[2] = {sum[n][2 * h], sum[n][2 * h + 1]};
        if (args_.z.data) {
          for (int i = 0; i < 2; ++i) y[i] *= silu(element_of(z_[n][h][i], args_.z.dtype));
        }
        store_pair(first_ + k * kChunk + token(h), dim(n), y);
      }
    }
  }

  __device__ void store_pair(int64_t row, int dim, const float (&y)[2]) const {
    const int count = dims_from(dim);
    if (y_in_pairs_ && count > 0) {
      auto* to = static_cast<float*>(args_.y.data) + row * args_.y.stride + column(dim);
      *reinterpret_cast<float2*>(to) = make_float2(y[0], y[1]);
    } else if (count > 0) {
      store_at(args_.y, row, column(dim), y[0]);
      if (count > 1) store_at(args_.y, row, column(dim + 1), y[1]);
    }
  }

  /// sum += C h
  __device__ void add_state(const ChunkScores<kStates, kChunk>& scores, float (&sum)[2][4]) const {
    const BlockPlace place(lane());
#pragma unroll
    for (int n = 0; n < Shape::kStateTiles; ++n) {
      uint32_t a[2][1][4], b[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        load_blocks(a[part][0], &scores.c[part][16 * token_tile() + place.row][16 * n + place.col]);
        load_blocks_transposed(b[part], &shared_.state[part][16 * n + place.row][16 * dim_tile() + place.col]);
      }
      const float scale = shared_.state_scale[n][dim_tile()];
      add_step(sum, a, b, {scale, scale});
    }
  }

  /// sum += what the tiles of tokens before the warp's add
  __device__ void add_earlier_tokens(const ChunkScores<kStates, kChunk>& scores, const ChunkTimes<kChunk>& times,
                                     const ChunkX<kChunk, Shape::kDims>& x, float (&sum)[2][4]) const {
    const BlockPlace place(lane());
#pragma unroll 1
    for (int k = 0; k < token_tile(); ++k) {
      uint32_t a[2][1][4], b[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        load_blocks(a[part][0], &scores.score[part][16 * token_tile() + place.row][16 * k + place.col]);
        load_blocks_transposed(b[part], &x.left[part][16 * k + place.row][16 * dim_tile() + place.col]);
      }
      float factor[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        factor[h] = scores.score_scale[token(h)][k] * times.decay(16 * k + 15, token(h)) * x.left_scale[k][dim_tile()];
      }
      add_step(sum, a, b, factor);
    }
  }

  /// sum += what tokens of the warp's own tile add, and D x
  __device__ void add_tile(const ChunkScores<kStates, kChunk>& scores, const ChunkTimes<kChunk>& times,
                           const ChunkX<kChunk, Shape::kDims>& x, float (&sum)[2][4]) const {
    const BlockPlace place(lane());
    uint32_t score[2][4], a[2][1][4], b[2][4];
    float factor[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      load_blocks(score[part], &scores.score[part][16 * token_tile() + place.row][16 * token_tile() + place.col]);
      load_blocks_transposed(b[part], &x.x[part][16 * token_tile() + place.row][16 * dim_tile() + place.col]);
    }
    const float d = args_.d[head_];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = token(h);
      const float scale = scores.score_scale[t][token_tile()];
      float weight[2][2], largest = 0;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 own = joined(score[0][left_register(n, h)], score[1][left_register(n, h)]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int s = 16 * token_tile() + 8 * n + ResultPlace(lane()).col + i;
          const float all = (i == 0 ? own.x : own.y) * scale * scores.b_scale[s] * times.delta[s] * times.decay(s, t);
          weight[n][i] = s > t ? 0.0f : s < t ? all : all + d;
          largest = fmaxf(largest, fabsf(weight[n][i]));
        }
      }
      const float weight_scale = scale_for(max_lanes(largest, 4)), inverse = inverse_of_scale(weight_scale);
      factor[h] = weight_scale * x.x_scale[token_tile()][dim_tile()];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        uint32_t parts[2];
        split(weight[n][0] * inverse, weight[n][1] * inverse, parts);
#pragma unroll
        for (int part = 0; part < 2; ++part) a[part][0][left_register(n, h)] = parts[part];
      }
    }
    add_step(sum, a, b, factor);
  }

  /// The state after the chunk.
  __device__ void advance(int k) {
    const auto& x = shared_.x[k % 2];
    const float kept = shared_.times[k % 4].decay(kChunk - 1);
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
          load_blocks_transposed(b[c][part], &x.left[part][16 * t + right.row][16 * col_tile(c) + right.col]);
        }
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        uint32_t a[2][1][4];
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          load_blocks_transposed(a[part][0], &shared_.inputs.b[part][16 * t + left.row][16 * row_tile(m) + left.col]);
        }
#pragma unroll
        for (int c = 0; c < kColTiles; ++c) {
          const float scale = x.last_scale[t][col_tile(c)];
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
          if (n < args_.state_size && dims_from(dim) > 0) {
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

  uint32_t z_[2][2][2];
  float state_[kRowTiles][kColTiles][2][4];
};

template <int kStates, int kChunk>
__global__ void __launch_bounds__(32 * kScoreWarps) ssd_scores_kernel(const __grid_constant__ ChunkParameters p) {
  extern __shared__ __align__(16) unsigned char ssd_memory[];
  static_assert(kChunk / 16 <= kScoreWarps);
  let_successors_begin();
  wait_for_predecessors();
  constexpr int kTiles = kChunk / 16;
  const int chunk = blockIdx.x / kTiles, sequence = blockIdx.y, group = blockIdx.z;
  const RowRange segment = p.args.batch.segments[sequence];
  const int first = segment.begin + chunk * kChunk;
  if (!is_taken(p, segment) || first >= segment.end) return;
  ChunkScorer<kStates, kChunk>(p.args, *reinterpret_cast<Chunk<kStates, kChunk>*>(ssd_memory), group,
                               blockIdx.x % kTiles)
      .run(first, segment.end - first, *chunk_of<kStates, kChunk>(p, sequence, chunk, group));
}

template <int kStates, int kChunk, int kBuffers>
__global__ void __launch_bounds__(ChunkShape<kStates, kChunk>::kThreads)
    ssd_chunks_kernel(const __grid_constant__ ChunkParameters p) {
  extern __shared__ __align__(16) unsigned char ssd_memory[];
  let_successors_begin();
  wait_for_predecessors();
  using Memory = ChunkMemory<kStates, kChunk, kBuffers>;
  ChunkBlock<kStates, kChunk, kBuffers> block(p, *reinterpret_cast<Memory*>(ssd_memory));
  if (block.chunks() == 0) return;
  block.start();
  if (threadIdx.x / 32 < ChunkShape<kStates, kChunk>::kWarps) {
    Multiplier<kStates, kChunk, kBuffers>(block).run();
  } else {
    Preparer<kStates, kChunk, kBuffers>(block).run();
  }
}

template <int kStates, int kChunk, int kBuffers>
struct Kernels {
  using Shape = ChunkShape<kStates, kChunk>;
  static constexpr size_t kSharedBytes = sizeof(ChunkMemory<kStates, kChunk, kBuffers>);
  static_assert(kSharedBytes >= sizeof(Chunk<kStates, kChunk>));

  static size_t workspace(const SsdArgs& args) {
    const auto count = static_cast<size_t>(slots_of_chunks<kChunk>(args.batch) * args.groups);
    return count * sizeof(Chunk<kStates, kChunk>);
  }

  static Status start(const ChunkParameters& p, Stream stream) {
    const SsdArgs& args = p.args;
    const auto count = static_cast<unsigned>(args.batch.count);
    const auto chunks = static_cast<unsigned>(ceil_div(args.batch.max_rows, kChunk));
    const auto slices = static_cast<unsigned>(args.heads * ceil_div<int64_t>(args.head_dim, Shape::kDims));
    const Status status = launch(ssd_scores_kernel<kStates, kChunk>,
                                 {.grid = dim3(chunks * Shape::kTokenTiles, count, static_cast<unsigned>(args.groups)),
                                  .block = dim3(32 * kScoreWarps),
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
  if (args.state_size <= 64) return first_of(Kernels<64, 64, 2>(), Kernels<64, 32, 1>());
  if (args.state_size <= 128) return first_of(Kernels<128, 64, 2>(), Kernels<128, 64, 1>(), Kernels<128, 32, 1>());
  return first_of(Kernels<256, 32, 2>(), Kernels<256, 32, 1>());
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
