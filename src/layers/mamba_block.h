#pragma once

#include "layers/block.h"

namespace hxq {

/// Mamba-1 (Gu & Dao 2023, arXiv 2312.00752).
std::unique_ptr<Block> make_mamba_block(const MambaBlockDesc& desc, const WeightSource& source);

}  // namespace hxq
