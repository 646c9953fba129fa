// What blocks of ssd_chunks.cu have in device and shared memory, how it gets there, and how products of parts are added
// up.

#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ssd_chunks_plan.h"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda {

/// Numbers that are two of binary16, rows far enough apart for tensor cores.
template <int kRows, int kCols>
using Parts = __half[2][kRows][spread_row(kCols)];

/// What outputs take of a chunk, the same for all heads of a group. Rows of B and C are divided by powers of two, and
/// so are rows of the tiles of C B^T; those right of the diagonal hold anything.
template <int kStates, int kChunk>
struct ChunkScores {
  alignas(16) Parts<kChunk, kStates> c;
  alignas(16) Parts<kChunk, kChunk> score;
  float score_scale[kChunk][kChunk / 16];  ///< with that of C
  float c_scale[kChunk], b_scale[kChunk];
};

/// What the state takes.
template <int kStates, int kChunk>
struct ChunkInputs {
  alignas(16) Parts<kChunk, kStates> b;
};

/// A chunk and group as `ssd_scores_kernel` leaves it in device memory.
template <int kStates, int kChunk>
struct Chunk {
  ChunkScores<kStates, kChunk> scores;
  ChunkInputs<kStates, kChunk> inputs;
};

struct ChunkParameters {
  SsdArgs args;
  int fewest;    ///< tokens of segments that are taken
  void* chunks;  ///< [slots, groups]
};

/// As many chunks as a batch may have: segments follow each other, so the last of one has slot (end - 1) / kChunk +
/// sequence at most.
template <int kChunk>
inline int64_t slots_of_chunks(const Batch& batch) {
  return batch.total_rows / kChunk + batch.count;
}

/// A chunk of a segment, where one is taken. No two of a batch have the same slot.
template <int kStates, int kChunk>
__device__ inline Chunk<kStates, kChunk>* chunk_of(const ChunkParameters& p, int sequence, int chunk, int group) {
  const int64_t slot = p.args.batch.segments[sequence].begin / kChunk + sequence + chunk;
  return static_cast<Chunk<kStates, kChunk>*>(p.chunks) + slot * p.args.groups + group;
}

__device__ inline bool is_taken(const ChunkParameters& p, const RowRange& segment) {
  const int rows = segment.end - segment.begin;
  return rows > 0 && rows >= p.fewest;
}

/// Of the tokens of a chunk: delta, and the sum of all logarithms (to base 2) of decays up to each as a whole number
/// and a rest in [0, 1), so that differences of large sums are exact.
template <int kChunk>
struct ChunkTimes {
  float delta[kChunk], whole[kChunk], rest[kChunk];

  /// What is left at token `to` of what was there after token `from`.
  __device__ float decay(int from, int to) const {
    return fast_exp2((whole[to] - whole[from]) + (rest[to] - rest[from]));
  }
  /// And of what was there before the chunk.
  __device__ float decay(int to) const { return fast_exp2(whole[to] + rest[to]); }
};

/// x of a chunk, and what is left of delta x at the last token of its tile, with the scale of B. Scales are of tiles.
template <int kChunk, int kDims>
struct ChunkX {
  alignas(16) Parts<kChunk, kDims> x, left;
  float x_scale[kChunk / 16][kDims / 16], left_scale[kChunk / 16][kDims / 16];
  float last_scale[kChunk / 16][kDims / 16];  ///< of what is left at the chunk's last token
};

template <int kStates, int kChunk, int kBuffers>
struct ChunkMemory {
  static constexpr int kDims = ChunkShape<kStates, kChunk>::kDims;

  ChunkScores<kStates, kChunk> scores[kBuffers];
  ChunkInputs<kStates, kChunk> inputs;
  alignas(16) Parts<kStates, kDims> state;  ///< before the chunk
  float state_scale[kStates / 16][kDims / 16];
  ChunkX<kChunk, kDims> x[2];
  ChunkTimes<kChunk> times[4];
};

/// sum += factor * a b. Tensor cores cut sums off, so those of a step start from zero.
__device__ inline void add_step(float (&sum)[2][4], const uint32_t (&a)[2][1][4], const uint32_t (&b)[2][4],
                                const float (&factor)[2]) {
  float step[1][2][4] = {};
  multiply_parts(step, a, b);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] = fmaf(step[0][n][i], factor[i / 2], sum[n][i]);
  }
}

/// Writes two numbers, divided by a power of two, as parts.
template <int kRows, int kStride>
__device__ inline void store_parts(__half (&to)[2][kRows][kStride], int row, int col, float x, float y, float inverse) {
  uint32_t parts[2];
  split(x * inverse, y * inverse, parts);
#pragma unroll
  for (int part = 0; part < 2; ++part) *reinterpret_cast<uint32_t*>(&to[part][row][col]) = parts[part];
}

/// Two numbers from their parts.
__device__ inline float2 joined(uint32_t high, uint32_t low) {
  const float2 h = __half22float2(*reinterpret_cast<const __half2*>(&high));
  const float2 l = __half22float2(*reinterpret_cast<const __half2*>(&low));
  return make_float2(h.x + l.x, h.y + l.y);
}

/// Whether pairs of elements that begin at even columns can be moved as a float2.
__device__ inline bool moves_pairs(const void* data, int64_t stride, DType dtype, int64_t cols) {
  return dtype == DType::f32 && is_aligned(data, 8) && stride % 2 == 0 && cols % 2 == 0;
}

/// The bits of pairs of elements of rows `step` elements apart, of which `element_of` makes floats: nothing waits for
/// them before that. Of each pair the columns below `cols`, of pairs those below `rows`; the others are zeros.
template <int kCount>
__device__ inline void load_pairs(const Input& from, bool in_pairs, int64_t first, int64_t step, int rows, int64_t cols,
                                  uint32_t (&bits)[kCount][2]) {
  if (in_pairs) {
    const auto* at = static_cast<const float*>(from.data) + first;
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += step) {
      const uint2 pair = i < rows && cols > 0 ? *reinterpret_cast<const uint2*>(at) : uint2{};
      bits[i][0] = pair.x, bits[i][1] = pair.y;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t at = first + i * step + j;
      bits[i][j] = i >= rows || j >= cols     ? 0
                   : from.dtype == DType::f32 ? static_cast<const uint32_t*>(from.data)[at]
                                              : static_cast<const uint16_t*>(from.data)[at];
    }
  }
}

__device__ inline float element_of(uint32_t bits, DType dtype) {
  if (dtype == DType::f32) return __uint_as_float(bits);
  if (dtype == DType::bf16) return __uint_as_float(bits << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

}  // namespace hxq::cuda
