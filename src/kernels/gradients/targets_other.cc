#include "kernels/gradients/ops.h"

namespace hxq::kernels {

const gradients::Ops& gradients::ops_of(Target) noexcept { return kScalarOps; }

}  // namespace hxq::kernels
