#pragma once

#include <cstdint>

namespace hxq {

/// Elementwise functions of gated MLPs.
enum class Activation : uint8_t {
  silu,  ///< x / (1 + e^-x)
  gelu,  ///< x Phi(x), by erf: transformers' "gelu"
};

}  // namespace hxq
