#pragma once

#include "layers/block.h"

namespace hxq {

/// A pre-norm decoder block with rotary grouped-query attention and a gated MLP (Llama, Qwen2).
std::unique_ptr<Block> make_transformer_block(const TransformerBlockDesc& desc, const WeightSource& source);

}  // namespace hxq
