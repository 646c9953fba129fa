// What the warps of a block of state-space duality of many tokens have in common, and those that prepare chunks.

#pragma once

#include "kernels/cuda/ssd_chunks_memory.cuh"

namespace hxq::cuda {

inline constexpr float kLeastLog = -512;  ///< of a decay to base 2: nothing is left long before

/// The block's elements of a head, and its chunks. All warps meet twice in each.
template <int kStates, int kChunk, int kBuffers>
class ChunkBlock {
 protected:
  using Shape = ChunkShape<kStates, kChunk>;
  using Memory = ChunkMemory<kStates, kChunk, kBuffers>;

 public:
  __device__ ChunkBlock(const ChunkParameters& p, Memory& shared)
      : args_(p.args),
        shared_(shared),
        x_in_pairs_(moves_pairs(args_.x.data, args_.x.stride, args_.x.dtype, args_.head_dim)),
        z_in_pairs_(moves_pairs(args_.z.data, args_.z.stride, args_.z.dtype, args_.head_dim)),
        y_in_pairs_(moves_pairs(args_.y.data, args_.y.stride, args_.y.dtype, args_.head_dim)) {
    const int slices = ceil_div(static_cast<int>(args_.head_dim), Shape::kDims);
    sequence_ = static_cast<int>(blockIdx.y);
    head_ = static_cast<int>(blockIdx.x) / slices;
    first_dim_ = static_cast<int>(blockIdx.x) % slices * Shape::kDims;
    const RowRange segment = args_.batch.segments[sequence_];
    first_ = segment.begin;
    rows_ = is_taken(p, segment) ? segment.end - segment.begin : 0;
    if (rows_ == 0) return;
    const int group = head_ / static_cast<int>(args_.heads / args_.groups);
    from_ = chunk_of<kStates, kChunk>(p, sequence_, 0, group);
    chunks_ = ceil_div(rows_, kChunk);
  }

  __device__ int chunks() const { return chunks_; }

  /// Asks for the scores of the first chunks.
  __device__ void start() {
#pragma unroll 1
    for (int k = 0; k < kBuffers; ++k) copy_scores(k);
  }

 protected:
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int lane() { return thread() % 32; }
  __device__ static int warp() { return thread() / 32; }
  __device__ int64_t column(int dim) const { return int64_t{head_} * args_.head_dim + first_dim_ + dim; }
  /// Of the head, from the block's element `dim` on.
  __device__ int dims_from(int dim) const { return static_cast<int>(args_.head_dim) - first_dim_ - dim; }

  template <class T>
  __device__ static void copy(T& to, const T& from) {
#pragma unroll 4
    for (int i = thread(); i < static_cast<int>(sizeof(T) / 16); i += Shape::kThreads)
      copy_async<16>(reinterpret_cast<uint4*>(&to) + i, reinterpret_cast<const uint4*>(&from) + i);
  }
  __device__ void copy_scores(int k) {
    if (k < chunks_) copy(shared_.scores[k % kBuffers], from_[k * args_.groups].scores);
    end_copy_group();
  }

  /// Scores, x, times and the state of a chunk are there; inputs, x and times of the one before have been read.
  __device__ void begin_outputs(int k) {
    wait_for_copies<kBuffers - 1>();
    __syncthreads();
    copy(shared_.inputs, from_[k * args_.groups].inputs);
    end_copy_group();
  }
  /// Inputs are there; scores and the state have been read.
  __device__ void begin_state(int k) {
    wait_for_copies<0>();
    __syncthreads();
    copy_scores(k + kBuffers);
  }

  const SsdArgs& args_;
  Memory& shared_;
  const bool x_in_pairs_, z_in_pairs_, y_in_pairs_;
  int sequence_, head_, first_dim_;
  int first_, rows_, chunks_ = 0;                 ///< of the segment; no chunks: it is not taken
  const Chunk<kStates, kChunk>* from_ = nullptr;  ///< the group's first chunk
};

/// The warps that prepare the next chunk.
template <int kStates, int kChunk, int kBuffers>
class Preparer : ChunkBlock<kStates, kChunk, kBuffers> {
  using Block = ChunkBlock<kStates, kChunk, kBuffers>;
  using Block::args_, Block::shared_, Block::x_in_pairs_, Block::head_, Block::first_, Block::rows_, Block::chunks_,
      Block::from_, Block::lane, Block::warp, Block::column, Block::dims_from, Block::begin_outputs, Block::begin_state;
  using typename Block::Shape;

 public:
  __device__ explicit Preparer(const Block& block) : Block(block) {}

  /// x of a chunk is there one before, its times two, which one warp works out.
  __device__ void run() {
    const bool weighs = warp() == Shape::kWarps;
    for (int k = 0; k < 2 && weighs; ++k) load_dt(k), weigh_tokens(k);
    load_x(0);
    __syncthreads();
    place_x(0);
    load_x(1);
#pragma unroll 1
    for (int k = 0; k < chunks_; ++k) {
      begin_outputs(k);
      if (weighs) load_dt(k + 2);
      if (k + 1 < chunks_) place_x(k + 1);
      begin_state(k);
      load_x(k + 2);
      if (weighs) weigh_tokens(k + 2);
    }
  }

 private:
  static constexpr int kLaneTokens = kChunk / 32;

  __device__ void load_dt(int k) {
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
      const int t = k * kChunk + kLaneTokens * lane() + i;
      dt_[i] = t < rows_ ? load_at(args_.dt, first_ + t, head_) : 0;
    }
  }

  /// What decays a chunk, by one warp. Sums in double: a float would lose what neighbours of large sums differ by.
  __device__ void weigh_tokens(int k) {
    ChunkTimes<kChunk>& times = shared_.times[k % 4];
    const float a = args_.a[head_] * kLog2E, bias = args_.dt_bias[head_];
    double log[kLaneTokens], sum = 0;
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
      const int t = kLaneTokens * lane() + i;
      const float delta = fminf(fmaxf(softplus(dt_[i] + bias), args_.dt_min), args_.dt_max);
      const bool exists = k * kChunk + t < rows_;
      times.delta[t] = exists ? delta : 0;
      sum += exists ? fmaxf(delta * a, kLeastLog) : 0;
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
    for (int i = 0; i < kLaneTokens; ++i) {
      const int t = kLaneTokens * lane() + i;
      const double all = before + log[i], whole = floor(all);
      times.whole[t] = static_cast<float>(whole);
      times.rest[t] = static_cast<float>(all - whole);
    }
  }

  // Of a tile of x a lane has two elements of every fourth token.
  __device__ static int preparer_tile(int j) { return warp() - Shape::kWarps + j * Shape::kPreparers; }
  __device__ static int x_token(int j) { return preparer_tile(j) / Shape::kDimTiles * 16 + lane() / 8; }
  __device__ static int x_dim(int j) { return preparer_tile(j) % Shape::kDimTiles * 16 + lane() % 8 * 2; }

  __device__ void load_x(int k) {
    if (k >= chunks_) return;
    const ChunkScores<kStates, kChunk>& scores = from_[k * args_.groups].scores;
#pragma unroll
    for (int j = 0; j < Shape::kPreparerTiles; ++j) {
      const int t = k * kChunk + x_token(j);
      load_pairs(args_.x, x_in_pairs_, (first_ + t) * args_.x.stride + column(x_dim(j)), 4 * args_.x.stride,
                 ceil_div(rows_ - t, 4), dims_from(x_dim(j)), x_[j]);
#pragma unroll
      for (int i = 0; i < 4; ++i) b_scale_[j][i] = scores.b_scale[x_token(j) + 4 * i];
    }
  }

  __device__ void place_x(int k) {
    const ChunkTimes<kChunk>& times = shared_.times[k % 4];
    auto& to = shared_.x[k % 2];
#pragma unroll
    for (int j = 0; j < Shape::kPreparerTiles; ++j) {
      const int row_tile = preparer_tile(j) / Shape::kDimTiles, col_tile = preparer_tile(j) % Shape::kDimTiles;
      const int end = 16 * row_tile + 15;
      float x[4][2], left[4], largest = 0, largest_left = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = x_token(j) + 4 * i;
        left[i] = times.delta[t] * times.decay(t, end) * b_scale_[j][i];
        x[i][0] = element_of(x_[j][i][0], args_.x.dtype), x[i][1] = element_of(x_[j][i][1], args_.x.dtype);
        const float larger = fmaxf(fabsf(x[i][0]), fabsf(x[i][1]));
        largest = fmaxf(largest, larger);
        largest_left = fmaxf(largest_left, larger * left[i]);
      }
      const float scale = scale_for(max_lanes(largest)), left_scale = scale_for(max_lanes(largest_left));
      const float inverse = inverse_of_scale(scale), left_inverse = inverse_of_scale(left_scale);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = x_token(j) + 4 * i;
        store_parts(to.x, t, x_dim(j), x[i][0], x[i][1], inverse);
        store_parts(to.left, t, x_dim(j), x[i][0] * left[i], x[i][1] * left[i], left_inverse);
      }
      if (lane() == 0) {
        to.x_scale[row_tile][col_tile] = scale;
        to.left_scale[row_tile][col_tile] = left_scale;
        to.last_scale[row_tile][col_tile] = left_scale * times.decay(end, kChunk - 1);
      }
    }
  }

  uint32_t x_[Shape::kPreparerTiles][4][2];  ///< of the next chunk, with scales of B
  float b_scale_[Shape::kPreparerTiles][4], dt_[kLaneTokens];
};

}  // namespace hxq::cuda
