// Gradients of convolution, selective scan and SSD; lanes are channels, or the elements of a head.

#pragma once

#include "kernels/cpu/math-inl.h"
#include "kernels/gradients/ops.h"

namespace hxq::kernels::gradients {
namespace {

using namespace cpu;

inline VecF get(const float* from, int64_t n) { return n == kLanes ? load(from) : load_first(from, n); }
inline void put(float* to, VecF v, int64_t n) { n == kLanes ? store(to, v) : store_first(to, v, n); }
inline void add(float* to, VecF v, int64_t n) { put(to, get(to, n) + v, n); }

inline VecF sigmoid(VecF x) { return 1.0f / (vec_exp(-x) + 1.0f); }
/// d silu(x) / dx, given sigmoid(x).
inline VecF silu_slope(VecF x, VecF s) { return s * (x * (1.0f - s) + 1.0f); }

void conv_lanes(const ConvGradientArgs& args, int64_t c, int64_t n, float* da) {
  const int64_t past = args.width - 1;
  const VecF bias = args.bias ? get(args.bias + c, n) : VecF{};
  const auto input = [&](int64_t t) { return get(args.x + t * args.x_stride + c, n); };
  const auto weight = [&](int64_t j) { return get(args.weight + j * args.channels + c, n); };
  VecF dbias = {};
  for (int64_t t = 0; t < args.tokens; ++t) {
    VecF a = bias;
    for (int64_t j = t < past ? past - t : 0; j < args.width; ++j) a += weight(j) * input(t - past + j);
    const VecF slope = silu_slope(a, sigmoid(a));
    const VecF d = get(args.g + t * args.channels + c, n) * slope;
    store(da + t * kLanes, d);
    dbias += d;
  }
  for (int64_t t = 0; t < args.tokens; ++t) {
    VecF dx = {};
    for (int64_t j = 0; j < args.width && t + past - j >= 0; ++j) {
      if (t + past - j < args.tokens) dx += weight(j) * load(da + (t + past - j) * kLanes);
    }
    put(args.dx + t * args.channels + c, dx, n);
  }
  for (int64_t j = 0; j < args.width; ++j) {
    VecF dweight = {};
    for (int64_t t = past - j; t < args.tokens; ++t) dweight += load(da + t * kLanes) * input(t - past + j);
    add(args.dweight + j * args.channels + c, dweight, n);
  }
  add(args.dbias + c, dbias, n);
}

void conv(const ConvGradientArgs& args, int64_t begin, int64_t end, float* memory) {
  for (int64_t c = begin; c < end; c += kLanes) conv_lanes(args, c, end - c < kLanes ? end - c : kLanes, memory);
}

/// kLanes channels of the scan.
class Scan {
 public:
  Scan(const ScanGradientArgs& args, int64_t c, int64_t n, float* memory)
      : args_(args),
        in_(args.forward),
        c_(c),
        n_(n),
        starts_(memory),
        states_(memory + runs_of(args.forward.batch.rows) * args.forward.state_size * kLanes) {}

  void run(float* partial) {
    const int64_t size = in_.state_size * kLanes;
    const int64_t runs = runs_of(in_.batch.rows);
    for (int64_t i = 0; i < size; i += kLanes) store(starts_ + i, VecF{});
    for (int64_t r = 0; r + 1 < runs; ++r) {
      for (int64_t i = 0; i < size; i += kLanes) store(starts_ + (r + 1) * size + i, load(starts_ + r * size + i));
      for (int64_t t = r * kRun; t < (r + 1) * kRun; ++t) {
        step(t, starts_ + (r + 1) * size, starts_ + (r + 1) * size);
      }
    }
    // The carry from later tokens lives behind the run's states, one step after the last.
    VecF dd = {};
    VecF dbias = {};
    float* carry = states_ + kRun * size;
    for (int64_t i = 0; i < size; i += kLanes) store(carry + i, VecF{});
    for (int64_t r = runs - 1; r >= 0; --r) {
      const int64_t first = r * kRun;
      const int64_t last = first + kRun < in_.batch.rows ? first + kRun : in_.batch.rows;
      for (int64_t t = first; t < last; ++t) {
        step(t, t == first ? starts_ + r * size : states_ + (t - first - 1) * size, states_ + (t - first) * size);
      }
      for (int64_t t = last - 1; t >= first; --t) {
        const float* before = t == first ? starts_ + r * size : states_ + (t - first - 1) * size;
        back(t, before, states_ + (t - first) * size, carry, partial + t * 2 * size, dd, dbias);
      }
    }
    add(args_.dd + c_, dd, n_);
    add(args_.ddt_bias + c_, dbias, n_);
  }

 private:
  VecF pre_delta(int64_t t) const {
    const VecF dt = get(in_.dt + t * in_.channels + c_, n_);
    return in_.dt_bias ? dt + get(in_.dt_bias + c_, n_) : dt;
  }
  VecF a(int64_t i) const { return get(in_.a + i * in_.channels + c_, n_); }

  void step(int64_t t, const float* from, float* to) const {
    const VecF delta = vec_softplus(pre_delta(t));
    const VecF delta_u = delta * get(in_.u + t * in_.channels + c_, n_);
    const float* b = in_.b + t * in_.bc_stride;
    for (int64_t i = 0; i < in_.state_size; ++i) {
      store(to + i * kLanes, vec_exp(delta * a(i)) * load(from + i * kLanes) + delta_u * b[i]);
    }
  }

  void back(int64_t t, const float* before, const float* after, float* carry, float* partial, VecF& dd, VecF& dbias) {
    const int64_t at = t * in_.channels + c_;
    const VecF s = pre_delta(t);
    const VecF delta = vec_softplus(s);
    const VecF u = get(in_.u + at, n_);
    const VecF z = get(in_.z + t * in_.z_stride + c_, n_);
    const VecF gate = sigmoid(z);
    const VecF g = get(args_.g + at, n_);
    const VecF d = get(in_.d + c_, n_);
    const float* b = in_.b + t * in_.bc_stride;
    const float* c = in_.c + t * in_.bc_stride;
    const VecF dp = g * z * gate;
    VecF p = d * u;
    VecF ddelta = {};
    VecF dstate_b = {};  // sum over the state of its gradient times B
    for (int64_t i = 0; i < in_.state_size; ++i) {
      const VecF h = load(after + i * kLanes);
      const VecF previous = load(before + i * kLanes);
      const VecF decay = vec_exp(delta * a(i));
      p += h * c[i];
      const VecF dh = load(carry + i * kLanes) + dp * c[i];
      const VecF through_decay = dh * previous * decay;
      ddelta += through_decay * a(i);
      dstate_b += dh * b[i];
      add(args_.da + i * in_.channels + c_, through_decay * delta, n_);
      float* db = partial + i * kLanes;
      float* dc = partial + (in_.state_size + i) * kLanes;
      store(db, load(db) + dh * delta * u);
      store(dc, load(dc) + dp * h);
      store(carry + i * kLanes, dh * decay);
    }
    ddelta += dstate_b * u;
    const VecF ds = ddelta * sigmoid(s);
    put(args_.du + at, dp * d + dstate_b * delta, n_);
    put(args_.ddt + at, ds, n_);
    put(args_.dz + at, g * p * silu_slope(z, gate), n_);
    dd += dp * u;
    dbias += ds;
  }

  const ScanGradientArgs& args_;
  const ScanArgs& in_;
  int64_t c_;
  int64_t n_;
  float* starts_;  // [runs, state_size, lanes]
  float* states_;  // [kRun + 1, state_size, lanes]
};

void scan(const ScanGradientArgs& args, int64_t begin, int64_t end, float* partial, float* memory) {
  for (int64_t c = begin; c < end; c += kLanes) {
    Scan(args, c, end - c < kLanes ? end - c : kLanes, memory).run(partial);
  }
}

/// One head of SSD.
class Ssd {
 public:
  Ssd(const SsdGradientArgs& args, int64_t head, float* memory)
      : args_(args),
        in_(args.forward),
        head_(head),
        group_(head / (in_.heads / in_.groups)),
        size_(in_.state_size * in_.head_dim),
        starts_(memory),
        states_(memory + runs_of(in_.batch.rows) * size_) {}

  void run(float* partial) {
    const int64_t runs = runs_of(in_.batch.rows);
    clear(starts_);
    for (int64_t r = 0; r + 1 < runs; ++r) {
      for (int64_t i = 0; i < size_; ++i) starts_[(r + 1) * size_ + i] = starts_[r * size_ + i];
      for (int64_t t = r * kRun; t < (r + 1) * kRun; ++t) step(t, starts_ + (r + 1) * size_, starts_ + (r + 1) * size_);
    }
    float* carry = states_ + kRun * size_;
    clear(carry);
    for (int64_t r = runs - 1; r >= 0; --r) {
      const int64_t first = r * kRun;
      const int64_t last = first + kRun < in_.batch.rows ? first + kRun : in_.batch.rows;
      for (int64_t t = first; t < last; ++t) step(t, state_before(r, t), states_ + (t - first) * size_);
      for (int64_t t = last - 1; t >= first; --t) {
        back(t, state_before(r, t), states_ + (t - first) * size_, carry, partial + t * 2 * in_.state_size);
      }
    }
  }

 private:
  const float* state_before(int64_t r, int64_t t) const {
    return t == r * kRun ? starts_ + r * size_ : states_ + (t - r * kRun - 1) * size_;
  }
  void clear(float* state) const {
    for (int64_t i = 0; i < size_; ++i) state[i] = 0;
  }
  float pre_delta(int64_t t) const { return in_.dt[t * in_.dt_stride + head_] + in_.dt_bias[head_]; }
  float clamp(float v) const { return v < in_.dt_min ? in_.dt_min : v > in_.dt_max ? in_.dt_max : v; }
  static float softplus(float v) { return vec_softplus(splat(v))[0]; }
  float decay_of(float delta) const { return vec_exp(splat(delta * in_.a[head_]))[0]; }
  const float* x(int64_t t) const { return in_.x + t * in_.xbc_stride + head_ * in_.head_dim; }
  const float* b(int64_t t) const { return in_.b + t * in_.xbc_stride + group_ * in_.state_size; }
  const float* c(int64_t t) const { return in_.c + t * in_.xbc_stride + group_ * in_.state_size; }
  int64_t lanes_at(int64_t p) const { return in_.head_dim - p < kLanes ? in_.head_dim - p : kLanes; }

  void step(int64_t t, const float* from, float* to) const {
    const float delta = clamp(softplus(pre_delta(t)));
    const float decay = decay_of(delta);
    for (int64_t i = 0; i < in_.state_size; ++i) {
      const float delta_b = delta * b(t)[i];
      for (int64_t p = 0; p < in_.head_dim; p += kLanes) {
        const int64_t n = lanes_at(p);
        put(to + i * in_.head_dim + p, get(from + i * in_.head_dim + p, n) * decay + get(x(t) + p, n) * delta_b, n);
      }
    }
  }

  void back(int64_t t, const float* before, const float* after, float* carry, float* partial) const {
    const int64_t at = (t * in_.heads + head_) * in_.head_dim;
    const float unclamped = softplus(pre_delta(t));
    const float delta = clamp(unclamped);
    const float decay = decay_of(delta);
    float ddecay = 0;
    float ddelta = 0;
    for (int64_t i = 0; i < 2 * in_.state_size; ++i) partial[i] = 0;
    for (int64_t p = 0; p < in_.head_dim; p += kLanes) {
      const int64_t n = lanes_at(p);
      const VecF z = get(in_.z + t * in_.z_stride + head_ * in_.head_dim + p, n);
      const VecF gate = sigmoid(z);
      const VecF g = get(args_.g + at + p, n);
      const VecF dq = g * z * gate;
      const VecF input = get(x(t) + p, n);
      VecF q = input * in_.d[head_];
      VecF dstate_b = {};
      VecF dstate_before = {};
      for (int64_t i = 0; i < in_.state_size; ++i) {
        const int64_t element = i * in_.head_dim + p;
        const VecF s = get(after + element, n);
        const VecF ds = get(carry + element, n) + dq * c(t)[i];
        q += s * c(t)[i];
        dstate_b += ds * b(t)[i];
        dstate_before += ds * get(before + element, n);
        partial[i] += delta * sum_lanes(ds * input);
        partial[in_.state_size + i] += sum_lanes(dq * s);
        put(carry + element, ds * decay, n);
      }
      ddecay += sum_lanes(dstate_before);
      ddelta += sum_lanes(dstate_b * input);
      args_.dd[head_] += sum_lanes(dq * input);
      put(args_.dx + at + p, dq * in_.d[head_] + dstate_b * delta, n);
      put(args_.dz + at + p, g * q * silu_slope(z, gate), n);
    }
    ddelta += ddecay * decay * in_.a[head_];
    args_.da[head_] += ddecay * decay * delta;
    const bool inside = unclamped >= in_.dt_min && unclamped <= in_.dt_max;
    const float ds = inside ? ddelta * sigmoid(splat(pre_delta(t)))[0] : 0.0f;
    args_.ddt[t * in_.heads + head_] = ds;
    args_.ddt_bias[head_] += ds;
  }

  const SsdGradientArgs& args_;
  const SsdArgs& in_;
  int64_t head_;
  int64_t group_;
  int64_t size_;   // state_size * head_dim
  float* starts_;  // [runs, state_size, head_dim]
  float* states_;  // [kRun + 1, state_size, head_dim]
};

void ssd(const SsdGradientArgs& args, int64_t head, float* partial, float* memory) {
  Ssd(args, head, memory).run(partial);
}

void add_scaled(float a, const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + load(x + i) * a);
  if (i < n) store_first(y + i, load_first(y + i, n - i) + load_first(x + i, n - i) * a, n - i);
}

}  // namespace
}  // namespace hxq::kernels::gradients
