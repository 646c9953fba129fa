#pragma once

#include <array>
#include <optional>

#include "kernels/attention.h"
#include "kernels/kernels.h"

namespace hxq::kernels {

struct LinearProduct {
  const PreparedMatrix* weight = nullptr;
  LinearArgs args;
};

/// Products with the same x, all of one phase. A norm or an activation whose y is x, at most one of the two, comes
/// first; what x points to means nothing afterwards then, since a device may take it into the products.
struct FusedLinearArgs {
  static constexpr size_t kMost = 6;

  std::optional<RmsNormArgs> norm = {};
  std::optional<GatedActivationArgs> activation = {};
  std::array<LinearProduct, kMost> products = {};  // [count]
  size_t count = 0;
};
void fused_linear(const FusedLinearArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
