// What chunks of state-space duality have in common for all heads of a group: B, C and C B^T as ssd_chunks.cu takes
// them.

#pragma once

#include "kernels/cuda/ssd_chunks_memory.cuh"

namespace hxq::cuda {

inline constexpr int kScoreWarps = 4;

/// Brings B and C of a chunk into the form that is multiplied, and multiplies them. A block has 16 tokens, and works
/// out B of all before them for itself.
template <int kStates, int kChunk>
class ChunkScorer {
 public:
  __device__ ChunkScorer(const SsdArgs& args, Chunk<kStates, kChunk>& shared, int group, int row_tile)
      : args_(args), shared_(shared), column_(group * args.state_size), row_tile_(row_tile) {}

  __device__ void run(int64_t first, int rows, Chunk<kStates, kChunk>& out) const {
    place(args_.c, first, rows, 16 * row_tile_, shared_.scores.c, shared_.scores.c_scale);
    place(args_.b, first, rows, 0, shared_.inputs.b, shared_.scores.b_scale);
    __syncthreads();
    multiply(out.scores);
    const int begin = 16 * row_tile_;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      copy(out.scores.c[part][begin], shared_.scores.c[part][begin], kStates);
      copy(out.inputs.b[part][begin], shared_.inputs.b[part][begin], kStates);
    }
    if (threadIdx.x < 16) {
      out.scores.c_scale[begin + threadIdx.x] = shared_.scores.c_scale[begin + threadIdx.x];
      out.scores.b_scale[begin + threadIdx.x] = shared_.scores.b_scale[begin + threadIdx.x];
    }
  }

 private:
  /// Tokens [begin, 16 * (row_tile_ + 1)) of a chunk, zeros for those past `rows`.
  __device__ void place(const Input& from, int64_t first, int rows, int begin, Parts<kChunk, kStates>& to,
                        float (&scales)[kChunk]) const {
    constexpr int kRows = 4, kPairs = kStates / 64;  // of a token, a lane's
    const bool in_pairs = moves_pairs(from.data, from.stride, from.dtype, args_.state_size);
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int t = begin + threadIdx.x / 32 * kRows; t < 16 * (row_tile_ + 1); t += kRows * kScoreWarps) {
      uint32_t bits[kPairs][kRows][2];
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int col = 64 * j + 2 * lane;
        load_pairs(from, in_pairs, (first + t) * from.stride + column_ + col, from.stride, rows - t,
                   args_.state_size - col, bits[j]);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float value[kPairs][2], largest = 0;
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
          value[j][0] = element_of(bits[j][i][0], from.dtype), value[j][1] = element_of(bits[j][i][1], from.dtype);
          largest = fmaxf(largest, fmaxf(fabsf(value[j][0]), fabsf(value[j][1])));
        }
        const float scale = scale_for(max_lanes(largest)), inverse = inverse_of_scale(scale);
#pragma unroll
        for (int j = 0; j < kPairs; ++j) store_parts(to, t + i, 64 * j + 2 * lane, value[j][0], value[j][1], inverse);
        if (lane == 0) scales[t + i] = scale;
      }
    }
  }

  /// A warp has a tile of tokens before those of the block.
  __device__ void multiply(ChunkScores<kStates, kChunk>& out) const {
    const int lane = threadIdx.x % 32, col_tile = threadIdx.x / 32;
    if (col_tile > row_tile_) return;
    const BlockPlace left(lane);
    const TransposedPlace right(lane);
    const ResultPlace result(lane);
    float sum[2][4] = {};
#pragma unroll 4
    for (int k = 0; k < kStates / 16; ++k) {
      uint32_t a[2][1][4], b[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        load_blocks(a[part][0], &shared_.scores.c[part][16 * row_tile_ + left.row][16 * k + left.col]);
        load_blocks(b[part], &shared_.inputs.b[part][16 * col_tile + right.row][16 * k + right.col]);
      }
      add_step(sum, a, b, {1.0f, 1.0f});
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = 16 * row_tile_ + 8 * h + result.row;
      float largest = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(sum[i / 2][2 * h + i % 2]));
      const float scale = scale_for(max_lanes(largest, 4)), inverse = inverse_of_scale(scale);
#pragma unroll
      for (int n = 0; n < 2; ++n)
        store_parts(out.score, t, 16 * col_tile + 8 * n + result.col, sum[n][2 * h], sum[n][2 * h + 1], inverse);
      if (lane % 4 == 0) out.score_scale[t][col_tile] = scale * shared_.scores.c_scale[t];
    }
  }

  /// 16 rows.
  template <class Row>
  __device__ static void copy(Row& to, const Row& from, int cols) {
    const auto* rows = &from;
    for (int i = threadIdx.x; i < 16 * cols / 8; i += 32 * kScoreWarps) {
      const int row = i / (cols / 8), col = i % (cols / 8) * 8;
      *reinterpret_cast<uint4*>(&(&to)[row][col]) = *reinterpret_cast<const uint4*>(&rows[row][col]);
    }
  }

  const SsdArgs& args_;
  Chunk<kStates, kChunk>& shared_;
  const int64_t column_;
  const int row_tile_;
};

}  // namespace hxq::cuda
