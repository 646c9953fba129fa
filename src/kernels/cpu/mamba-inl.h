// RMS norm, causal convolution and selective scan; lanes are channels.

#pragma once

#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/ops.h"

namespace hxq::kernels::cpu {
namespace {

/// The vectors of a range of channels: whole ones, then what is left. `n` is kLanes for a whole one.
inline VecF load_lanes(const float* from, int64_t n) { return n == kLanes ? load(from) : load_first(from, n); }
inline void store_lanes(float* to, VecF v, int64_t n) { n == kLanes ? store(to, v) : store_first(to, v, n); }
inline int64_t lanes_at(int64_t channel, int64_t end) { return end - channel < kLanes ? end - channel : kLanes; }

void rms_norm(const RmsNormArgs& args, int64_t begin, int64_t end) {
  const int64_t dim = args.dim / args.groups;
  for (int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * dim;
    const float* weight = args.weight + row % args.groups * dim;
    float* y = args.y + row * dim;
    VecF sum = {};
    for (int64_t i = 0; i < dim; i += kLanes) {
      const VecF v = load_lanes(x + i, lanes_at(i, dim));
      sum += v * v;
    }
    const float mean = sum_lanes(sum) / static_cast<float>(dim);
    const float scale = 1.0f / __builtin_sqrtf(mean + args.eps);
    for (int64_t i = 0; i < dim; i += kLanes) {
      const int64_t n = lanes_at(i, dim);
      store_lanes(y + i, load_lanes(x + i, n) * scale * load_lanes(weight + i, n), n);
    }
  }
}

/// One token, whose inputs of kPast times before are all that the state holds: reads it once.
template <int kPast>
void conv_one(const ConvArgs& args, int64_t token, float* state, int64_t channel_begin, int64_t channel_end) {
  const int64_t channels = args.channels;
  const float* x = args.x + token * args.x_stride;
  for (int64_t c = channel_begin; c < channel_end; c += kLanes) {
    const int64_t n = lanes_at(c, channel_end);
    VecF input[kPast + 1];
    for (int j = 0; j < kPast; ++j) input[j] = load_lanes(state + j * channels + c, n);
    input[kPast] = load_lanes(x + c, n);
    VecF sum = args.bias ? load_lanes(args.bias + c, n) : VecF{};
    for (int j = 0; j <= kPast; ++j) sum += load_lanes(args.weight + j * channels + c, n) * input[j];
    store_lanes(args.y + token * channels + c, vec_silu(sum), n);
    for (int j = 0; j < kPast; ++j) store_lanes(state + j * channels + c, input[j + 1], n);
  }
}

void conv(const ConvArgs& args, int64_t segment, int64_t channel_begin, int64_t channel_end) {
  const int64_t past = args.width - 1;
  const int64_t first = args.batch.segment[segment].begin;
  const int64_t tokens = args.batch.segment[segment].end - first;
  float* state = static_cast<float*>(args.state[segment]);
  if (tokens == 1 && past == 3 && args.state_rows == past) {
    return conv_one<3>(args, first, state, channel_begin, channel_end);
  }
  // Inputs of time t; those before the first token lie in the state.
  const auto input = [&](int64_t t) {
    return t < 0 ? state + (t + args.state_rows) * args.channels : args.x + (first + t) * args.x_stride;
  };
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = channel_begin; c < channel_end; c += kLanes) {
      const int64_t n = lanes_at(c, channel_end);
      VecF sum = args.bias ? load_lanes(args.bias + c, n) : VecF{};
      for (int64_t j = 0; j < args.width; ++j) {
        sum += load_lanes(args.weight + j * args.channels + c, n) * load_lanes(input(t - past + j) + c, n);
      }
      store_lanes(args.y + (first + t) * args.channels + c, vec_silu(sum), n);
    }
  }
  // Oldest first: a row that comes from the state itself is read before it is overwritten.
  for (int64_t i = 0; i < args.state_rows; ++i) {
    const float* from = input(tokens - args.state_rows + i);
    float* to = state + i * args.channels;
    if (from != to) {
      for (int64_t c = channel_begin; c < channel_end; ++c) to[c] = from[c];
    }
  }
}

/// What the recurrence of kLanes channels needs of up to kScanTokens tokens, and gives.
constexpr int64_t kScanTokens = 16;
struct ScanChunk {
  VecF delta[kScanTokens];
  VecF delta_u[kScanTokens];
  VecF sum[kScanTokens];  // D * u at first
};

/// A row of the state after a token: what it was decays, the input comes to it.
inline VecF next_state(VecF h, VecF a, VecF delta, VecF delta_u, float b) {
  return vec_exp(delta * a) * h + delta_u * b;
}

/// Runs kStates rows of the state, from `row` on, over the tokens of a chunk, the state in registers.
template <int kStates>
void scan_states(const ScanArgs& args, float* state, int64_t first, int64_t tokens, int64_t row, int64_t c, int64_t n,
                 ScanChunk& chunk) {
  VecF h[kStates], a[kStates];
#pragma GCC unroll 8
  for (int i = 0; i < kStates; ++i) {
    h[i] = load_lanes(state + (row + i) * args.channels + c, n);
    a[i] = load_lanes(args.a + (row + i) * args.channels + c, n);
  }
  const float* b = args.b + first * args.bc_stride + row;
  const float* coefficient = args.c + first * args.bc_stride + row;
  for (int64_t t = 0; t < tokens; ++t, b += args.bc_stride, coefficient += args.bc_stride) {
    VecF sum = chunk.sum[t];
#pragma GCC unroll 8
    for (int i = 0; i < kStates; ++i) {
      h[i] = next_state(h[i], a[i], chunk.delta[t], chunk.delta_u[t], b[i]);
      sum += h[i] * coefficient[i];
    }
    chunk.sum[t] = sum;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kStates; ++i) store_lanes(state + (row + i) * args.channels + c, h[i], n);
}

/// The same for a chunk of one token and as many rows as registers hold. Rows are often a multiple of 2 KB apart, and a
/// load waits for an earlier store whose address has the same lower 12 bits: no row is stored before all are loaded.
constexpr int kStatesOfOne = kLanes == 16 ? 16 : 8;
inline void scan_states_of_one(const ScanArgs& args, float* state, int64_t token, int64_t row, int64_t c, int64_t n,
                               ScanChunk& chunk) {
  VecF h[kStatesOfOne];
#pragma GCC unroll 16
  for (int i = 0; i < kStatesOfOne; ++i) h[i] = load_lanes(state + (row + i) * args.channels + c, n);
  const float* b = args.b + token * args.bc_stride + row;
  const float* coefficient = args.c + token * args.bc_stride + row;
  const VecF delta = chunk.delta[0], delta_u = chunk.delta_u[0];
  VecF sum = chunk.sum[0];
#pragma GCC unroll 16
  for (int i = 0; i < kStatesOfOne; ++i) {
    h[i] = next_state(h[i], load_lanes(args.a + (row + i) * args.channels + c, n), delta, delta_u, b[i]);
    sum += h[i] * coefficient[i];
  }
  chunk.sum[0] = sum;
#pragma GCC unroll 16
  for (int i = 0; i < kStatesOfOne; ++i) store_lanes(state + (row + i) * args.channels + c, h[i], n);
}

/// n <= kLanes channels from c on. A sum runs over the state in order, whatever the number of tokens.
void scan_channels(const ScanArgs& args, RowRange rows, float* state, int64_t c, int64_t n) {
  const VecF bias = args.dt_bias ? load_lanes(args.dt_bias + c, n) : VecF{};
  const VecF d = load_lanes(args.d + c, n);
  for (int64_t first = rows.begin; first < rows.end; first += kScanTokens) {
    const int64_t tokens = rows.end - first < kScanTokens ? rows.end - first : kScanTokens;
    ScanChunk chunk;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = (first + t) * args.channels + c;
      const VecF u = load_lanes(args.u + at, n);
      chunk.delta[t] = vec_softplus(load_lanes(args.dt + at, n) + bias);
      chunk.delta_u[t] = chunk.delta[t] * u;
      chunk.sum[t] = d * u;
    }
    int64_t row = 0;
    for (; tokens == 1 && row + kStatesOfOne <= args.state_size; row += kStatesOfOne) {
      scan_states_of_one(args, state, first, row, c, n, chunk);
    }
    for (; row + 4 <= args.state_size; row += 4) scan_states<4>(args, state, first, tokens, row, c, n, chunk);
    for (; row < args.state_size; ++row) scan_states<1>(args, state, first, tokens, row, c, n, chunk);
    for (int64_t t = 0; t < tokens; ++t) {
      const VecF gate = vec_silu(load_lanes(args.z + (first + t) * args.z_stride + c, n));
      store_lanes(args.y + (first + t) * args.channels + c, chunk.sum[t] * gate, n);
    }
  }
}

/// Asks for what a vector of channels needs from memory: rows are too far apart for the processor to foresee them.
inline void prefetch_scan(const ScanArgs& args, const float* state, int64_t c) {
  for (int64_t row = 0; row < args.state_size; ++row) {
    __builtin_prefetch(state + row * args.channels + c, 1);
    __builtin_prefetch(args.a + row * args.channels + c);
  }
}

void scan(const ScanArgs& args, int64_t segment, int64_t channel_begin, int64_t channel_end) {
  constexpr int64_t kAhead = 2 * kLanes;
  float* state = static_cast<float*>(args.state[segment]);
  for (int64_t c = channel_begin; c < channel_end; c += kLanes) {
    if (c + kAhead < channel_end) prefetch_scan(args, state, c + kAhead);
    scan_channels(args, args.batch.segment[segment], state, c, lanes_at(c, channel_end));
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
