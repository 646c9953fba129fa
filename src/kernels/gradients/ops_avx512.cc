#include "kernels/cpu/vec_avx512-inl.h"
#include "kernels/gradients/gradients-inl.h"

namespace hxq::kernels::gradients {

const Ops kAvx512Ops = {.lanes = cpu::kLanes, .conv = conv, .scan = scan, .ssd = ssd, .add_scaled = add_scaled};

}  // namespace hxq::kernels::gradients
