#include "kernels/cpu/vec_scalar-inl.h"
#include "kernels/gradients/gradients-inl.h"

namespace hxq::kernels::gradients {

const Ops kScalarOps = {.lanes = cpu::kLanes, .conv = conv, .scan = scan, .ssd = ssd, .add_scaled = add_scaled};

}  // namespace hxq::kernels::gradients
