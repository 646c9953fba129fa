#pragma once

#include "layers/block.h"

namespace hxq {

/// A hybrid layer of Zamba2 (Glorioso et al. 2024, arXiv 2411.15242): attention and MLP shared with other layers, fed
/// with the block's input beside the token embeddings, then a Mamba-2 mixer.
std::unique_ptr<Block> make_zamba2_block(const Zamba2BlockDesc& desc, const WeightSource& source);

}  // namespace hxq
