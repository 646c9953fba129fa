#include "kernels/cpu/ops.h"

// Processors without kernels of their own.
namespace hxq::kernels {

std::vector<Target> supported_targets() { return {Target::scalar}; }

const cpu::Ops& cpu::ops_of(Target) noexcept { return kScalarOps; }

}  // namespace hxq::kernels
