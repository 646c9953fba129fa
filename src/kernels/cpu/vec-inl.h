// Vectors of HXQ_LANES floats in the notation of the compiler's vector extension, which lowers them to what the
// translation unit's target has. A target first of all includes its vec_<target>-inl.h, which defines HXQ_LANES and
// adds what the extension does not express.

#pragma once

#include <cstddef>
#include <cstdint>

// The compiler keeps tables and sums in registers only if everything is one function early on.
#define HXQ_ALWAYS_INLINE __attribute__((always_inline)) inline

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kLanes = HXQ_LANES;
typedef float VecF __attribute__((vector_size(HXQ_LANES * 4)));
typedef int32_t VecI __attribute__((vector_size(HXQ_LANES * 4)));
typedef float Vec4 __attribute__((vector_size(16)));

[[maybe_unused]] inline VecF load(const void* from) {
  VecF v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

[[maybe_unused]] inline void store(float* to, VecF v) { __builtin_memcpy(to, &v, sizeof v); }

[[maybe_unused]] inline Vec4 load4(const float* from) {
  Vec4 v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

[[maybe_unused]] inline VecF splat(float value) { return value - VecF{}; }

[[maybe_unused]] inline VecI splat_int(int32_t value) { return value - VecI{}; }

[[maybe_unused]] inline VecI bits_of(VecF v) { return reinterpret_cast<VecI>(v); }

[[maybe_unused]] inline VecF from_bits(VecI v) { return reinterpret_cast<VecF>(v); }

/// Sum of the lanes: halves are added to each other.
[[maybe_unused]] inline float sum_lanes(VecF v) {
  float lane[HXQ_LANES];
  __builtin_memcpy(lane, &v, sizeof v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

}  // namespace
}  // namespace hxq::kernels::cpu
