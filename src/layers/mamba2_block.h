#pragma once

#include "layers/block.h"

namespace hxq {

/// A residual block of nothing but Mamba-2's mixer.
std::unique_ptr<Block> make_mamba2_block(const Mamba2BlockDesc& desc, const WeightSource& source);

}  // namespace hxq
