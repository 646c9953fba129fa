#include "layers/block.h"

#include "layers/mamba2_block.h"
#include "layers/mamba_block.h"
#include "layers/transformer_block.h"
#include "layers/zamba2_block.h"

namespace hxq {
namespace {

struct Maker {
  const WeightSource& source;

  std::unique_ptr<Block> operator()(const MambaBlockDesc& desc) const { return make_mamba_block(desc, source); }
  std::unique_ptr<Block> operator()(const Mamba2BlockDesc& desc) const { return make_mamba2_block(desc, source); }
  std::unique_ptr<Block> operator()(const TransformerBlockDesc& desc) const {
    return make_transformer_block(desc, source);
  }
  std::unique_ptr<Block> operator()(const Zamba2BlockDesc& desc) const { return make_zamba2_block(desc, source); }
};

}  // namespace

StateValues read_state(const kernels::DeviceArray<float>& array, Shape shape) {
  StateValues state{.shape = std::move(shape), .values = std::vector<float>(static_cast<size_t>(array.size()))};
  array.download(state.values);
  return state;
}

std::unique_ptr<Block> make_block(const BlockDesc& desc, const WeightSource& source) {
  return std::visit(Maker{source}, desc);
}

}  // namespace hxq
