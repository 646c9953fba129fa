#pragma once

#include "codec/stored_matrix.h"
#include "kernels/cpu_context.h"
#include "kernels/kernels.h"

namespace hxq::kernels {

/// The arguments with x as the matrix wants it, [tokens, cols]: x itself where there is nothing to do, otherwise in
/// shared scratch, complete for the whole team.
LinearArgs transform_input(const InputTransform& transform, const LinearArgs& args, const CpuContext& context) noexcept;

}  // namespace hxq::kernels
