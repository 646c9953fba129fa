// Elementary functions on vectors, to about 2 ulp. NaN passes through.

#pragma once

#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// e^x: x = n ln 2 + r, |r| <= ln 2 / 2; e^r by the polynomial of Cephes' expf (Moshier).
inline VecF vec_exp(VecF x) {
  const VecF kRound = splat(0x1.8p23f);                  // adding it leaves the rounded integer in the low bits
  x = smaller(larger(x, splat(-104.0f)), splat(89.0f));  // e^-104 rounds to 0, e^89 to infinity
  const VecF shifted = x * 1.44269504088896341f + kRound;
  const VecF whole = shifted - kRound;
  VecF r = x - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  VecF p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return scale_by_power(p, whole);
}

/// log(1 + e) for e in [0, 1]: 2 atanh(s), s = e / (2 + e) <= 1/3, by its series.
inline VecF vec_log1p_unit(VecF e) {
  const VecF s = e / (e + 2.0f);
  const VecF s2 = s * s;
  VecF p = splat(2.0f / 17);
  p = p * s2 + 2.0f / 15;
  p = p * s2 + 2.0f / 13;
  p = p * s2 + 2.0f / 11;
  p = p * s2 + 2.0f / 9;
  p = p * s2 + 2.0f / 7;
  p = p * s2 + 2.0f / 5;
  p = p * s2 + 2.0f / 3;
  return p * (s2 * s) + 2.0f * s;
}

/// log(1 + e^x), without overflow for large x and without cancellation for very negative x.
inline VecF vec_softplus(VecF x) {
  const VecF magnitude = from_bits(bits_of(x) & 0x7fffffff);
  return vec_log1p_unit(vec_exp(-magnitude)) + larger(x, VecF{});
}

/// x / (1 + e^-x).
inline VecF vec_silu(VecF x) { return x / (vec_exp(-x) + 1.0f); }

/// x Phi(x), the normal distribution's Phi by its tail: 1 - Phi(u) = e^(-u^2 / 2) r(1 / (1 + 0.35 u)), u = |x|, where r
/// is a polynomial fitted to 3.2e-8 relative error (Lawson's algorithm), so that very negative x keep their precision.
inline VecF vec_gelu(VecF x) {
  const VecF u = from_bits(bits_of(x) & 0x7fffffff);
  const VecF t = 1.0f / (u * 0.35f + 1.0f);
  VecF r = splat(-0.029157886281609535f);
  r = r * t + 0.14403091371059418f;
  r = r * t - 0.2558389902114868f;
  r = r * t + 0.1593196988105774f;
  r = r * t - 0.023212352767586708f;
  r = r * t + 0.10555250197649002f;
  r = r * t + 0.11982128769159317f;
  r = r * t + 0.139863520860672f;
  r = r * t + 0.139621302485466f;
  const VecF tail = vec_exp(u * u * -0.5f) * (r * t);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

template <VecF (*kFunction)(VecF)>
void apply(const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, kFunction(load(x + i)));
  if (i < n) store_first(y + i, kFunction(load_first(x + i, n - i)), n - i);
}

}  // namespace
}  // namespace hxq::kernels::cpu
