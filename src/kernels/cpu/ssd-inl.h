// Mamba-2's recurrence: lanes are elements of a head, rows x[t, :] and s[n, :] are contiguous as they are.
//
// With c[t] = sum_{i <= t} delta[i] A in a chunk, its matrix form is
//     y[t] = exp(c[t]) C[t] s  +  sum_{i <= t} M[t, i] x[i],   M[t, i] = (C[t] . B[i]) exp(c[t] - c[i]) delta[i]
//     s    = exp(c[last]) s    +  sum_i B[i]^T (exp(c[last] - c[i]) delta[i] x[i])
// Only differences of c are taken to the power, and in double: c itself grows with the chunk.

#pragma once

#include "kernels/cpu/mamba-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/ssd.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kSsdChunk = 64;  // longer ones spend more on M, shorter ones on passes over the state

/// One thread's memory.
struct SsdMemory {
  SsdMemory(const SsdArgs& args, float* memory)
      : total(reinterpret_cast<double*>(memory)),
        delta(memory + 2 * kSsdChunk),
        growth(delta + kSsdChunk),
        row(growth + kSsdChunk),
        b(row + kSsdChunk),
        cb(b + args.state_size * kSsdChunk),
        mix(cb + kSsdChunk * kSsdChunk),
        weighted(mix + kSsdChunk * kSsdChunk) {}

  static int64_t floats(const SsdArgs& args) {
    return kSsdChunk * (5 + args.state_size + 2 * kSsdChunk + args.head_dim);
  }

  double* total;    // [chunk]: c
  float* delta;     // [chunk]
  float* growth;    // [chunk]: exp(c)
  float* row;       // [chunk]: what one row of exponents is made in
  float* b;         // [state_size, chunk]: B of the group, transposed
  float* cb;        // [chunk, chunk]: C B^T of the group
  float* mix;       // [chunk, chunk]: M
  float* weighted;  // [chunk, head_dim]: exp(c[last] - c[i]) delta[i] x[i]
};

int64_t ssd_floats(const SsdArgs& args) { return SsdMemory::floats(args); }

/// sum[i][v] += sum_k a[i, k] * b[k, v]; `n` lanes of b are used when kVectors is 1.
template <int kRows, int kVectors>
inline void add_product(VecF (&sum)[kRows][kVectors], const float* a, int64_t a_stride, const float* b,
                        int64_t b_stride, int64_t count, int64_t n) {
  for (int64_t k = 0; k < count; ++k) {
    VecF v[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j)
      v[j] = kVectors == 1 ? load_lanes(b + k * b_stride, n) : load(b + k * b_stride + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const VecF w = splat(a[i * a_stride + k]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sum[i][j] += w * v[j];
    }
  }
}

template <int kRows, int kVectors, class Tile>
inline void for_row_tiles(int64_t row, int64_t rows, int64_t col, int64_t n, const Tile& tile) {
  for (; row + kRows <= rows; row += kRows) tile.template operator()<kRows, kVectors>(row, col, n);
  if constexpr (kRows > 1) {
    if (row < rows) for_row_tiles<kRows / 2, kVectors>(row, rows, col, n, tile);
  }
}

/// Calls tile<kRows, kVectors>(row, col, n) to cover [rows, cols]; a tile starts at a multiple of its height, and is
/// kVectors vectors wide, or n lanes.
template <class Tile>
inline void for_tiles(int64_t rows, int64_t cols, const Tile& tile) {
  constexpr int kRows = kLanes == 16 ? 8 : 4;  // as registers allow
  int64_t col = 0;
  for (; col + 2 * kLanes <= cols; col += 2 * kLanes) for_row_tiles<kRows, 2>(0, rows, col, kLanes, tile);
  for (; col < cols; col += kLanes) for_row_tiles<kRows, 1>(0, rows, col, lanes_at(col, cols), tile);
}

/// e^x for x <= 0, and 0 below 1e-35: products with such factors could be subnormal, which is slow and means nothing.
inline VecF ssd_decay(VecF x) { return x < -80.0f ? VecF{} : vec_exp(x); }

/// delta[i] of one head for `tokens` tokens from `first`.
inline void ssd_deltas(const SsdArgs& args, int64_t head, int64_t first, int64_t tokens, float* delta) {
  for (int64_t t = 0; t < tokens; ++t) delta[t] = args.dt[(first + t) * args.dt_stride + head] + args.dt_bias[head];
  for (int64_t t = 0; t < tokens; t += kLanes) {
    const int64_t n = lanes_at(t, tokens);
    const VecF value = vec_softplus(load_lanes(delta + t, n));
    store_lanes(delta + t, smaller(larger(value, splat(args.dt_min)), splat(args.dt_max)), n);
  }
}

inline VecF ssd_output(const SsdArgs& args, int64_t head, int64_t t, int64_t col, int64_t n, VecF sum) {
  const int64_t at = head * args.head_dim + col;
  const VecF x = load_lanes(args.x + t * args.xbc_stride + at, n);
  return (sum + args.d[head] * x) * vec_silu(load_lanes(args.z + t * args.z_stride + at, n));
}

/// A single token of one head, kVectors vectors of it (or n lanes): reads and writes the state once.
template <int kVectors>
inline void ssd_step(const SsdArgs& args, int64_t head, float delta, int64_t col, int64_t n) {
  const int64_t group = head / (args.heads / args.groups);
  const float* b = args.b + group * args.state_size;
  const float* c = args.c + group * args.state_size;
  const int64_t at = head * args.head_dim + col;
  const VecF decay = ssd_decay(splat(delta * args.a[head]));
  VecF input[kVectors], sum[kVectors] = {};
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) input[j] = delta * load_lanes(args.x + at + j * kLanes, n);
  float* state = args.state + head * args.state_size * args.head_dim + col;
  for (int64_t i = 0; i < args.state_size; ++i, state += args.head_dim) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const VecF s = decay * load_lanes(state + j * kLanes, n) + b[i] * input[j];
      store_lanes(state + j * kLanes, s, n);
      sum[j] += s * c[i];
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    store_lanes(args.y + at + j * kLanes, ssd_output(args, head, 0, col + j * kLanes, n, sum[j]), n);
  }
}

void ssd_step(const SsdArgs& args, int64_t head_begin, int64_t head_end) {
  for (int64_t head = head_begin; head < head_end; ++head) {
    float delta;
    ssd_deltas(args, head, 0, 1, &delta);
    int64_t col = 0;
    for (; col + 4 * kLanes <= args.head_dim; col += 4 * kLanes) ssd_step<4>(args, head, delta, col, kLanes);
    for (; col < args.head_dim; col += kLanes) ssd_step<1>(args, head, delta, col, lanes_at(col, args.head_dim));
  }
}

/// B^T and C B^T of a group; of the latter what lies above the diagonal's tiles is not computed.
inline void ssd_group(const SsdArgs& args, int64_t group, int64_t first, int64_t tokens, const SsdMemory& memory) {
  const float* b = args.b + first * args.xbc_stride + group * args.state_size;
  const float* c = args.c + first * args.xbc_stride + group * args.state_size;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < args.state_size; ++i) memory.b[i * kSsdChunk + t] = b[t * args.xbc_stride + i];
  }
  for_tiles(tokens, tokens, [&]<int kRows, int kVectors>(int64_t row, int64_t col, int64_t n) {
    if (col >= row + kRows) return;
    VecF sum[kRows][kVectors] = {};
    add_product(sum, c + row * args.xbc_stride, args.xbc_stride, memory.b + col, kSsdChunk, args.state_size, n);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j)
        store_lanes(memory.cb + (row + i) * kSsdChunk + col + j * kLanes, sum[i][j], n);
    }
  });
}

/// exp(end - c[i]) for i < count, into memory.row.
inline void ssd_decays(const SsdMemory& memory, double end, int64_t count) {
  for (int64_t i = 0; i < count; ++i) memory.row[i] = static_cast<float>(end - memory.total[i]);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = lanes_at(i, count);
    store_lanes(memory.row + i, ssd_decay(load_lanes(memory.row + i, n)), n);
  }
}

/// Everything of a chunk that depends on its time steps: c, exp(c), M and the weighted input.
inline void ssd_weights(const SsdArgs& args, int64_t head, int64_t first, int64_t tokens, const SsdMemory& memory) {
  ssd_deltas(args, head, first, tokens, memory.delta);
  double total = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    total += static_cast<double>(memory.delta[t]) * args.a[head];
    memory.total[t] = total;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    ssd_decays(memory, memory.total[t], t + 1);
    float* mix = memory.mix + t * kSsdChunk;
    for (int64_t i = 0; i <= t; i += kLanes) {
      const int64_t n = lanes_at(i, t + 1);
      const VecF decay = load_lanes(memory.row + i, n);
      // Lanes past t are stored as 0: the product of M and x runs to the end of a tile.
      store(mix + i, load_lanes(memory.cb + t * kSsdChunk + i, n) * decay * load_lanes(memory.delta + i, n));
    }
  }
  for (int64_t t = 0; t < tokens; ++t) memory.growth[t] = static_cast<float>(memory.total[t]);
  for (int64_t t = 0; t < tokens; t += kLanes) {
    const int64_t n = lanes_at(t, tokens);
    store_lanes(memory.growth + t, ssd_decay(load_lanes(memory.growth + t, n)), n);
  }
  ssd_decays(memory, total, tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* x = args.x + (first + t) * args.xbc_stride + head * args.head_dim;
    const float weight = memory.row[t] * memory.delta[t];
    for (int64_t col = 0; col < args.head_dim; ++col) memory.weighted[t * args.head_dim + col] = weight * x[col];
  }
}

/// One head's outputs for a chunk, then its state.
inline void ssd_chunk(const SsdArgs& args, int64_t head, int64_t first, int64_t tokens, const SsdMemory& memory) {
  const int64_t dim = args.head_dim;
  const int64_t group = head / (args.heads / args.groups);
  const float* c = args.c + first * args.xbc_stride + group * args.state_size;
  const float* x = args.x + first * args.xbc_stride + head * dim;
  float* state = args.state + head * args.state_size * dim;
  for_tiles(tokens, dim, [&]<int kRows, int kVectors>(int64_t row, int64_t col, int64_t n) {
    VecF sum[kRows][kVectors] = {};
    add_product(sum, c + row * args.xbc_stride, args.xbc_stride, state + col, dim, args.state_size, n);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) sum[i][j] *= memory.growth[row + i];
    }
    add_product(sum, memory.mix + row * kSsdChunk, kSsdChunk, x + col, args.xbc_stride, row + kRows, n);
    for (int i = 0; i < kRows; ++i) {
      const int64_t t = first + row + i;
      for (int j = 0; j < kVectors; ++j) {
        const int64_t at = col + j * kLanes;
        store_lanes(args.y + (t * args.heads + head) * dim + at, ssd_output(args, head, t, at, n, sum[i][j]), n);
      }
    }
  });
  const float decay = memory.growth[tokens - 1];
  for_tiles(args.state_size, dim, [&]<int kRows, int kVectors>(int64_t row, int64_t col, int64_t n) {
    float* at = state + row * dim + col;
    VecF sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) sum[i][j] = decay * load_lanes(at + i * dim + j * kLanes, n);
    }
    add_product(sum, memory.b + row * kSsdChunk, kSsdChunk, memory.weighted + col, dim, tokens, n);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) store_lanes(at + i * dim + j * kLanes, sum[i][j], n);
    }
  });
}

void ssd(const SsdArgs& args, int64_t head_begin, int64_t head_end, float* own) {
  if (args.tokens == 1) return ssd_step(args, head_begin, head_end);
  const SsdMemory memory(args, own);
  const int64_t heads_per_group = args.heads / args.groups;
  for (int64_t first = 0; first < args.tokens; first += kSsdChunk) {
    const int64_t tokens = args.tokens - first < kSsdChunk ? args.tokens - first : kSsdChunk;
    for (int64_t head = head_begin; head < head_end; ++head) {
      if (head == head_begin || head % heads_per_group == 0)
        ssd_group(args, head / heads_per_group, first, tokens, memory);
      ssd_weights(args, head, first, tokens, memory);
      ssd_chunk(args, head, first, tokens, memory);
    }
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
