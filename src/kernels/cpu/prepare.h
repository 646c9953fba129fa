#pragma once

#include <memory>

#include "kernels/cpu_matrix.h"

namespace hxq::kernels::cpu {

/// The matrix made ready for the CPU. A codec with kernels of its own has a row in the table of prepare.cc; the others
/// are multiplied through their `decode_rows` (`GenericMatrix`).
std::unique_ptr<const CpuMatrix> prepare(std::unique_ptr<const StoredMatrix> stored);

}  // namespace hxq::kernels::cpu
