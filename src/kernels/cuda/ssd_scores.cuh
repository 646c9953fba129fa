// What chunks of state-space duality have in common for all heads of a group: B, C and C B^T as ssd_chunks.cu takes
// them.

#pragma once

#include "kernels/cuda/runs.cuh"
#include "kernels/cuda/ssd_chunks_memory.cuh"

namespace hxq::cuda {

struct ChunkParameters {
  SsdArgs args;
  int fewest;    ///< tokens of segments that are taken
  void* chunks;  ///< [slots, groups]
};

/// A chunk of a segment, where one is taken.
template <int kStates, int kChunk>
__device__ inline Chunk<kStates, kChunk>* chunk_of(const ChunkParameters& p, int sequence, int chunk, int group) {
  const int64_t slot = slot_of_run(p.args.batch.segments[sequence], sequence, chunk, kChunk);
  return static_cast<Chunk<kStates, kChunk>*>(p.chunks) + slot * p.args.groups + group;
}

__device__ inline bool is_taken(const ChunkParameters& p, const RowRange& segment) {
  const int rows = segment.end - segment.begin;
  return rows > 0 && rows >= p.fewest;
}

/// Brings B and C of a chunk into the form that is multiplied, and multiplies them.
template <int kStates, int kChunk>
class ChunkScorer {
  using Shape = ChunkShape<kStates, kChunk>;

 public:
  __device__ ChunkScorer(const SsdArgs& args, Chunk<kStates, kChunk>& shared, int group)
      : args_(args), shared_(shared), group_(group) {}

  __device__ void run(int64_t first, int rows) const {
    place(args_.c, first, rows, shared_.scores.c, shared_.scores.c_scale);
    place(args_.b, first, rows, shared_.inputs.b, shared_.scores.b_scale);
    __syncthreads();
    multiply();
    __syncthreads();
  }

  __device__ void copy_to(Chunk<kStates, kChunk>* chunk) const {
    const auto* from = reinterpret_cast<const uint4*>(&shared_);
    for (size_t i = threadIdx.x; i < sizeof(shared_) / 16; i += Shape::kThreads)
      reinterpret_cast<uint4*>(chunk)[i] = from[i];
  }

 private:
  __device__ void place(const Input& from, int64_t first, int rows, Parts<kChunk, kStates>& to,
                        float (&scales)[kChunk]) const {
    const int lane = threadIdx.x % 32;
#pragma unroll 4
    for (int t = threadIdx.x / 32; t < kChunk; t += Shape::kWarps) {
      float value[kStates / 64][2], largest = 0;
#pragma unroll
      for (int j = 0; j < kStates / 64; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int n = 64 * j + 2 * lane + i;
          value[j][i] = t < rows && n < args_.state_size ? load_at(from, first + t, group_ * args_.state_size + n) : 0;
          largest = fmaxf(largest, fabsf(value[j][i]));
        }
      }
      const float scale = scale_for(max_lanes(largest)), inverse = inverse_of_scale(scale);
#pragma unroll
      for (int j = 0; j < kStates / 64; ++j) store_parts(to, t, 64 * j + 2 * lane, value[j][0], value[j][1], inverse);
      if (lane == 0) scales[t] = scale;
    }
  }

  /// A warp has 16 tokens and every other tile of those before them.
  __device__ void multiply() const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row_tile = warp / 2;
    const BlockPlace left(lane);
    const TransposedPlace right(lane);
    const ResultPlace result(lane);
#pragma unroll 1
    for (int col_tile = warp % 2; col_tile <= row_tile; col_tile += 2) {
      float sum[2][4] = {};
#pragma unroll 4
      for (int k = 0; k < Shape::kStateTiles; ++k) {
        uint32_t a[2][1][4], b[2][4];
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          load_blocks(a[part][0], &shared_.scores.c[part][16 * row_tile + left.row][16 * k + left.col]);
          load_blocks(b[part], &shared_.inputs.b[part][16 * col_tile + right.row][16 * k + right.col]);
        }
        add_step(sum, a, b, {1.0f, 1.0f});
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int t = 16 * row_tile + 8 * h + result.row;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int s = 16 * col_tile + 8 * n + result.col + i;
            shared_.scores.score[t][s] = sum[n][2 * h + i] * shared_.scores.c_scale[t] * shared_.scores.b_scale[s];
          }
        }
      }
    }
  }

  const SsdArgs& args_;
  Chunk<kStates, kChunk>& shared_;
  const int group_;
};

template <int kStates, int kChunk>
static __global__ void __launch_bounds__(ChunkShape<kStates, kChunk>::kThreads)
    ssd_scores_kernel(const __grid_constant__ ChunkParameters p) {
  extern __shared__ __align__(16) unsigned char ssd_memory[];
  let_successors_begin();
  wait_for_predecessors();
  const int chunk = blockIdx.x, sequence = blockIdx.y, group = blockIdx.z;
  const RowRange segment = p.args.batch.segments[sequence];
  const int first = segment.begin + chunk * kChunk;
  if (!is_taken(p, segment) || first >= segment.end) return;
  const ChunkScorer<kStates, kChunk> scorer(p.args, *reinterpret_cast<Chunk<kStates, kChunk>*>(ssd_memory), group);
  scorer.run(first, segment.end - first);
  scorer.copy_to(chunk_of<kStates, kChunk>(p, sequence, chunk, group));
}

}  // namespace hxq::cuda
