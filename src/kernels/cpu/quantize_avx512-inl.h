// Activation quantization: x as 16-bit integers with a scale for a block of columns
// (kernels/activation_quantization.h).

#pragma once

#include "kernels/activation_quantization.h"
#include "kernels/cpu/vec_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// kLanes columns of x, of which `cols` are left; zero past the last.
inline VecF columns_of(const float* x, int64_t cols) {
  return cols >= kLanes ? load(x) : cols > 0 ? load_first(x, cols) : VecF{};
}

/// Magnitudes are ordered as their bits, infinities and NaN above all others.
inline VecF larger_magnitude(VecF largest, VecF v) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(largest), _mm512_castps_si512(_mm512_abs_ps(v))));
}

inline float largest_lane(VecF magnitudes) {
  return __builtin_bit_cast(float, _mm512_reduce_max_epu32(_mm512_castps_si512(magnitudes)));
}

/// What x is multiplied by before it is rounded, and what restores it. What is not finite makes all sums of the token
/// NaN; what is too small for a reciprocal counts as 0.
struct BlockScale {
  float inverse, scale;

  BlockScale(const ActivationQuantization& to, float most) : inverse(to.largest / most), scale(most / to.largest) {
    if (!(most <= __FLT_MAX__)) inverse = 0, scale = __builtin_nanf("");
    if (most < 0x1p-100f) inverse = 0, scale = 0;
  }
};

/// 32 columns, rounded, in order.
inline __m512i round_columns(VecF first, VecF second) {
  alignas(64) static constexpr int16_t kLower[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                     32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  return _mm512_permutex2var_epi16(_mm512_cvtps_epi32(first), _mm512_load_si512(kLower), _mm512_cvtps_epi32(second));
}

}  // namespace
}  // namespace hxq::kernels::cpu
