// Activation quantization: x as 16-bit integers with a scale for a block of columns
// (kernels/activation_quantization.h). What targets do in their own way is in quantize_<target>-inl.h.

#pragma once

#include "kernels/activation_quantization.h"
#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Columns that kernels take at once.
constexpr int64_t kBlock = 64;

inline int64_t blocks_of(int64_t cols) { return (cols + kBlock - 1) / kBlock; }

/// kLanes columns of x, of which `cols` are left; zero past the last.
inline VecF columns_of(const float* x, int64_t cols) {
  return cols >= kLanes ? load(x) : cols > 0 ? load_first(x, cols) : VecF{};
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

}  // namespace
}  // namespace hxq::kernels::cpu
