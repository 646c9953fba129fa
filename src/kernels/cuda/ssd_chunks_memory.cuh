// What blocks of ssd_chunks.cu have in shared memory, and how products of parts are added up.

#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ssd_chunks_plan.h"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda {

/// Numbers that are two of binary16, rows far enough apart for tensor cores.
template <int kRows, int kCols>
using Parts = __half[2][kRows][spread_row(kCols)];

/// What outputs take of a chunk, the same for all heads of a group. Rows of B and C are divided by powers of two; tiles
/// of scores right of the diagonal hold anything.
template <int kStates, int kChunk>
struct ChunkScores {
  alignas(16) Parts<kChunk, kStates> c;
  alignas(16) float score[kChunk][kChunk + 8];  ///< C_t B_s
  float c_scale[kChunk], b_scale[kChunk];
};

/// What the state takes.
template <int kStates, int kChunk>
struct ChunkInputs {
  alignas(16) Parts<kChunk, kStates> b;
};

/// A chunk and group as `scores_kernel` leaves it in device memory.
template <int kStates, int kChunk>
struct Chunk {
  ChunkScores<kStates, kChunk> scores;
  ChunkInputs<kStates, kChunk> inputs;
};

/// Of the tokens of a chunk: delta, and the sum of all logarithms (to base 2) of decays up to each as a whole number
/// and a rest in [0, 1), so that differences of large sums are exact.
template <int kChunk>
struct ChunkTimes {
  float delta[kChunk], whole[kChunk], rest[kChunk];

  /// The logarithm of what is left at token `to` of what was there after token `from`.
  __device__ float log_decay(int from, int to) const { return (whole[to] - whole[from]) + (rest[to] - rest[from]); }
  __device__ float log_decay(int to) const { return whole[to] + rest[to]; }
};

template <int kStates, int kChunk, int kBuffers>
struct ChunkMemory {
  static constexpr int kDims = ChunkShape<kStates, kChunk>::kDims;

  ChunkScores<kStates, kChunk> scores[kBuffers];
  ChunkInputs<kStates, kChunk> inputs[kBuffers];
  alignas(16) Parts<kStates, kDims> state;   ///< before the chunk
  alignas(16) Parts<kChunk, kDims> x, last;  ///< x, and what is left of delta x at the chunk's last token
  float state_scale[kStates / 16][kDims / 16], x_scale[kChunk / 16][kDims / 16], last_scale[kChunk / 16][kDims / 16];
  ChunkTimes<kChunk> times[2];
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

/// The bits of an element, of which `element_of` makes a float: nothing waits for them before that.
__device__ inline uint32_t load_bits(const Input& from, int64_t row, int64_t col) {
  const int64_t at = row * from.stride + col;
  return from.dtype == DType::f32 ? static_cast<const uint32_t*>(from.data)[at]
                                  : static_cast<const uint16_t*>(from.data)[at];
}
__device__ inline float element_of(uint32_t bits, DType dtype) {
  if (dtype == DType::f32) return __uint_as_float(bits);
  if (dtype == DType::bf16) return __uint_as_float(bits << 16);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

}  // namespace hxq::cuda
