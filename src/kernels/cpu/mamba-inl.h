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

void conv(const ConvArgs& args, int64_t channel_begin, int64_t channel_end) {
  const int64_t past = args.width - 1;
  // Inputs of time t; those before the first token lie in the state.
  const auto input = [&](int64_t t) {
    return t < 0 ? args.state + (t + past) * args.channels : args.x + t * args.x_stride;
  };
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t c = channel_begin; c < channel_end; c += kLanes) {
      const int64_t n = lanes_at(c, channel_end);
      VecF sum = args.bias ? load_lanes(args.bias + c, n) : VecF{};
      for (int64_t j = 0; j < args.width; ++j) {
        sum += load_lanes(args.weight + j * args.channels + c, n) * load_lanes(input(t - past + j) + c, n);
      }
      store_lanes(args.y + t * args.channels + c, vec_silu(sum), n);
    }
  }
  // Oldest first: a row that comes from the state itself is read before it is overwritten.
  for (int64_t i = 0; i < past; ++i) {
    const float* from = input(args.tokens - past + i);
    float* to = args.state + i * args.channels;
    if (from != to) {
      for (int64_t c = channel_begin; c < channel_end; ++c) to[c] = from[c];
    }
  }
}

/// One step of the recurrence that all state sizes share.
struct ScanInput {
  VecF delta;
  VecF delta_u;
  VecF skip;  // D * u
  VecF gate;  // silu(z)
};

inline ScanInput scan_input(const ScanArgs& args, int64_t t, int64_t c, int64_t n) {
  const int64_t at = t * args.channels + c;
  const VecF u = load_lanes(args.u + at, n);
  VecF dt = load_lanes(args.dt + at, n);
  if (args.dt_bias) dt += load_lanes(args.dt_bias + c, n);
  const VecF delta = vec_softplus(dt);
  return {delta, delta * u, load_lanes(args.d + c, n) * u, vec_silu(load_lanes(args.z + t * args.z_stride + c, n))};
}

/// The state of kLanes channels stays in registers over all tokens.
template <int kStateSize>
void scan_fixed(const ScanArgs& args, int64_t c, int64_t n) {
  VecF h[kStateSize];
#pragma GCC unroll 16
  for (int i = 0; i < kStateSize; ++i) h[i] = load_lanes(args.state + i * args.channels + c, n);
  for (int64_t t = 0; t < args.tokens; ++t) {
    const ScanInput in = scan_input(args, t, c, n);
    const float* b = args.b + t * args.bc_stride;
    const float* coefficient = args.c + t * args.bc_stride;
    VecF sum = in.skip;
#pragma GCC unroll 16
    for (int i = 0; i < kStateSize; ++i) {
      const VecF decay = vec_exp(in.delta * load_lanes(args.a + i * args.channels + c, n));
      h[i] = decay * h[i] + in.delta_u * b[i];
      sum += h[i] * coefficient[i];
    }
    store_lanes(args.y + t * args.channels + c, sum * in.gate, n);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kStateSize; ++i) store_lanes(args.state + i * args.channels + c, h[i], n);
}

void scan_any(const ScanArgs& args, int64_t c, int64_t n) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    const ScanInput in = scan_input(args, t, c, n);
    VecF sum = in.skip;
    for (int64_t i = 0; i < args.state_size; ++i) {
      float* state = args.state + i * args.channels + c;
      const VecF decay = vec_exp(in.delta * load_lanes(args.a + i * args.channels + c, n));
      const VecF h = decay * load_lanes(state, n) + in.delta_u * args.b[t * args.bc_stride + i];
      store_lanes(state, h, n);
      sum += h * args.c[t * args.bc_stride + i];
    }
    store_lanes(args.y + t * args.channels + c, sum * in.gate, n);
  }
}

void scan(const ScanArgs& args, int64_t channel_begin, int64_t channel_end) {
  for (int64_t c = channel_begin; c < channel_end; c += kLanes) {
    const int64_t n = lanes_at(c, channel_end);
    args.state_size == 16 ? scan_fixed<16>(args, c, n) : scan_any(args, c, n);
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
