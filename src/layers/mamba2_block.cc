#include "layers/mamba2_block.h"

#include "layers/mamba2_mixer.h"

namespace hxq {
namespace {

class Mamba2BlockState final : public BlockState {
 public:
  Mamba2BlockState(const StateOptions& options, const Mamba2BlockDesc& desc) : mixer_(options, desc) {}
  void reset() override { mixer_.reset(); }
  void copy_from(const BlockState& other, int64_t) override {
    mixer_.copy_from(static_cast<const Mamba2BlockState&>(other).mixer_);
  }
  int64_t bytes() const noexcept override { return mixer_.bytes(); }
  void put_arrays(std::span<void*> arrays) const noexcept override { mixer_.put_arrays(arrays); }
  StateValues read(StateKind kind, int64_t) const override { return mixer_.read(kind); }

 private:
  Mamba2State mixer_;
};

class Mamba2Block final : public Block {
 public:
  Mamba2Block(const Mamba2BlockDesc& desc, const WeightSource& source)
      : desc_(desc), state_options_(source.state), mixer_(desc, source) {}

  std::unique_ptr<BlockState> new_state() const override {
    return std::make_unique<Mamba2BlockState>(state_options_, desc_);
  }
  int64_t state_arrays() const noexcept override { return Mamba2State::kArrays; }

  void forward(const BlockArgs& args, const kernels::Context& context) const noexcept override {
    mixer_(args.x, args.x, args.batch, args.state, args.work, context);
  }

 private:
  Mamba2BlockDesc desc_;
  StateOptions state_options_;
  Mamba2Mixer mixer_;
};

}  // namespace

std::unique_ptr<Block> make_mamba2_block(const Mamba2BlockDesc& desc, const WeightSource& source) {
  return std::make_unique<Mamba2Block>(desc, source);
}

}  // namespace hxq
