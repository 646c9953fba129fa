// Mamba-2's recurrence: lanes are elements of a head.

#pragma once

#include "kernels/cpu/mamba-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/ssd.h"

namespace hxq::kernels::cpu {
namespace {

/// Tokens that a row of the state is taken through while it is in registers.
constexpr int64_t kSsdTokens = 16;

/// e^x for x <= 0, and 0 below 1e-35: products with such factors could be subnormal, which is slow and means nothing.
inline VecF ssd_decay(VecF x) { return x < -80.0f ? VecF{} : vec_exp(x); }

/// What the recurrence of some columns of one head needs of up to kSsdTokens tokens, and gives.
template <int kVectors>
struct SsdChunk {
  VecF input[kSsdTokens][kVectors];  // delta * x
  VecF sum[kSsdTokens][kVectors];
};

/// Time steps of one head, and what the state decays to in each.
struct SsdSteps {
  alignas(64) float delta[kSsdTokens];
  alignas(64) float decay[kSsdTokens];  // exp(delta * A)
};

inline void ssd_steps(const SsdArgs& args, int64_t head, int64_t first, int64_t tokens, SsdSteps& steps) {
  for (int64_t t = 0; t < kSsdTokens; ++t) {
    steps.delta[t] = t < tokens ? args.dt[(first + t) * args.dt_stride + head] + args.dt_bias[head] : 0.0f;
  }
  for (int64_t t = 0; t < tokens; t += kLanes) {
    const VecF delta = smaller(larger(vec_softplus(load(steps.delta + t)), splat(args.dt_min)), splat(args.dt_max));
    store(steps.delta + t, delta);
    store(steps.decay + t, ssd_decay(delta * args.a[head]));
  }
}

/// Takes kRows rows of the state, from row `i` on, through the tokens of a chunk, in registers. b and c: of the first
/// token and of row 0.
template <int kRows, int kVectors>
inline void ssd_rows(const SsdArgs& args, float* state, const float* b, const float* c, int64_t tokens,
                     const SsdSteps& steps, int64_t i, int64_t n, SsdChunk<kVectors>& chunk) {
  VecF s[kRows][kVectors];
  float* row = state + i * args.head_dim;
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) s[r][j] = load_lanes(row + r * args.head_dim + j * kLanes, n);
  }
  b += i;
  c += i;
  for (int64_t t = 0; t < tokens; ++t, b += args.xbc_stride, c += args.xbc_stride) {
    const VecF decay = splat(steps.decay[t]);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const VecF input = chunk.input[t][j];
      VecF sum = chunk.sum[t][j];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        s[r][j] = decay * s[r][j] + b[r] * input;
        sum += s[r][j] * c[r];
      }
      chunk.sum[t][j] = sum;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store_lanes(row + r * args.head_dim + j * kLanes, s[r][j], n);
  }
}

/// kVectors vectors of a head, from `col` on (or n lanes of one), through the tokens of a chunk. For each token the sum
/// runs over the state in order, whatever the chunk.
template <int kVectors>
void ssd_columns(const SsdArgs& args, float* state, int64_t head, int64_t first, int64_t tokens, const SsdSteps& steps,
                 int64_t col, int64_t n) {
  const int64_t at = head * args.head_dim + col;
  SsdChunk<kVectors> chunk;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* x = args.x + (first + t) * args.xbc_stride + at;
    for (int j = 0; j < kVectors; ++j) {
      chunk.input[t][j] = steps.delta[t] * load_lanes(x + j * kLanes, n);
      chunk.sum[t][j] = VecF{};
    }
  }
  const int64_t group = head / (args.heads / args.groups) * args.state_size;
  const float* b = args.b + first * args.xbc_stride + group;
  const float* c = args.c + first * args.xbc_stride + group;
  float* columns = state + head * args.state_size * args.head_dim + col;
  int64_t i = 0;
  for (; i + 4 <= args.state_size; i += 4) ssd_rows<4, kVectors>(args, columns, b, c, tokens, steps, i, n, chunk);
  for (; i < args.state_size; ++i) ssd_rows<1, kVectors>(args, columns, b, c, tokens, steps, i, n, chunk);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int j = 0; j < kVectors; ++j) {
      const int64_t lane = at + j * kLanes;
      const VecF x = load_lanes(args.x + (first + t) * args.xbc_stride + lane, n);
      const VecF gate = vec_silu(load_lanes(args.z + (first + t) * args.z_stride + lane, n));
      const VecF y = (chunk.sum[t][j] + args.d[head] * x) * gate;
      store_lanes(args.y + (first + t) * args.heads * args.head_dim + lane, y, n);
    }
  }
}

void ssd(const SsdArgs& args, int64_t segment, int64_t head_begin, int64_t head_end) {
  const RowRange rows = args.batch.segment[segment];
  float* state = static_cast<float*>(args.state[segment]);
  for (int64_t first = rows.begin; first < rows.end; first += kSsdTokens) {
    const int64_t tokens = rows.end - first < kSsdTokens ? rows.end - first : kSsdTokens;
    for (int64_t head = head_begin; head < head_end; ++head) {
      SsdSteps steps;
      ssd_steps(args, head, first, tokens, steps);
      int64_t col = 0;
      for (; col + 2 * kLanes <= args.head_dim; col += 2 * kLanes) {
        ssd_columns<2>(args, state, head, first, tokens, steps, col, kLanes);
      }
      for (; col < args.head_dim; col += kLanes) {
        ssd_columns<1>(args, state, head, first, tokens, steps, col, lanes_at(col, args.head_dim));
      }
    }
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
