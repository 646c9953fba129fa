#include "layers/block.h"

#include "layers/mamba_block.h"
#include "layers/transformer_block.h"

namespace hxq {
namespace {

struct Maker {
  const WeightSource& source;

  std::unique_ptr<Block> operator()(const MambaBlockDesc& desc) const { return make_mamba_block(desc, source); }
  std::unique_ptr<Block> operator()(const TransformerBlockDesc& desc) const { return make_transformer_block(desc, source); }
};

}  // namespace

std::unique_ptr<Block> make_block(const BlockDesc& desc, const WeightSource& source) {
  return std::visit(Maker{source}, desc);
}

}  // namespace hxq
