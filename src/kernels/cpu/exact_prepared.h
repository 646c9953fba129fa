#pragma once

#include <memory>

#include "kernels/cpu_matrix.h"

namespace hxq::kernels::cpu {

/// Of an ExactMatrix: multiplied in the type it is stored in, where it lies.
std::unique_ptr<const CpuMatrix> prepare_exact(std::unique_ptr<const StoredMatrix> stored);

}  // namespace hxq::kernels::cpu
