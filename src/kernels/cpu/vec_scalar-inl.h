// What the compiler's vector extension does not express, for any processor.

#pragma once

#define HXQ_LANES 4

#include "io/half.h"
#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// The first n < kLanes floats; the others are 0.
inline VecF load_first(const void* from, int64_t n) {
  VecF v = {};
  __builtin_memcpy(&v, from, static_cast<size_t>(n) * sizeof(float));
  return v;
}

inline void store_first(float* to, VecF v, int64_t n) {
  __builtin_memcpy(to, &v, static_cast<size_t>(n) * sizeof(float));
}

inline VecF smaller(VecF a, VecF b) { return a > b ? b : a; }  // a when a is NaN
inline VecF larger(VecF a, VecF b) { return a < b ? b : a; }   // a when a is NaN

/// Left to the compiler.
template <class Vector>
inline void keep_in_register(Vector&) {}

/// sum_lanes of each of four vectors, to the last bit.
inline Vec4 sum_lanes_of_4(VecF a, VecF b, VecF c, VecF d) {
  return Vec4{sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)};
}

/// v * 2^n for whole n in [-252, 254], rounded once: two factors, so that each is a normal number.
inline VecF scale_by_power(VecF v, VecF n) {
  const VecI power = __builtin_convertvector(n, VecI);
  const VecI half = power >> 1;
  return v * from_bits((half + 127) << 23) * from_bits((power - half + 127) << 23);
}

/// kLanes binary16 numbers, widened.
inline VecF load_f16(const void* from) {
  uint16_t bits[HXQ_LANES];
  __builtin_memcpy(bits, from, sizeof bits);
  float value[HXQ_LANES];
  for (int64_t i = 0; i < kLanes; ++i) value[i] = float_from_f16(bits[i]);
  return load(value);
}

/// The same, narrowed, rounded to nearest even.
inline void store_f16(void* to, VecF v) {
  uint16_t bits[HXQ_LANES];
  for (int64_t i = 0; i < kLanes; ++i) bits[i] = f16_from_float(v[i]);
  __builtin_memcpy(to, bits, sizeof bits);
}

/// table[index[i]] for kLanes bytes.
inline VecF look_up_lanes(const float* table, const uint8_t* index) {
  return VecF{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}

}  // namespace
}  // namespace hxq::kernels::cpu
