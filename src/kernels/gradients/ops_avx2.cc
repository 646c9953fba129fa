#include "kernels/cpu/vec_avx2-inl.h"
#include "kernels/gradients/gradients-inl.h"

namespace hxq::kernels::gradients {

const Ops kAvx2Ops = {.lanes = cpu::kLanes, .conv = conv, .scan = scan, .ssd = ssd, .add_scaled = add_scaled};

}  // namespace hxq::kernels::gradients
