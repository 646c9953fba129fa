#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "desc/model_desc.h"
#include "layers/weight.h"

namespace hxq {

/// The tokens of a call, and where they are in the sequence.
struct TokenRange {
  int64_t position = 0;  ///< of the first token
  int64_t tokens = 0;
  int64_t end = 0;  ///< position after the last token of the whole call; a long call comes in several ranges
};

/// What one block remembers of the sequence so far.
class BlockState {
 public:
  virtual ~BlockState() = default;
  /// Back to the start of a sequence.
  virtual void reset() = 0;
  /// Gets ready for a `forward` on these tokens. Called by one thread; here memory may be taken (std::bad_alloc).
  virtual void prepare(const TokenRange&) {}
};

/// How states keep what they remember.
struct StateOptions {
  DType kv_cache = DType::f32;  ///< F32 or F16
};

/// What a block works on. All threads of the team get the same.
struct BlockArgs {
  float* x = nullptr;                // [tokens, hidden], updated in place
  const float* embedding = nullptr;  // [tokens, hidden], what the first block got; null unless the model asks for it
  int64_t tokens = 0;
  int64_t position = 0;   ///< of the first token
  float* work = nullptr;  // work_size(tokens) floats, shared by the team
};

/// One residual block of a model: x += f(norm(x)). Immutable; everything that changes is in its state.
class Block {
 public:
  virtual ~Block() = default;

  virtual std::unique_ptr<BlockState> new_state(const StateOptions& options) const = 0;

  /// Floats of work memory that `forward` needs for this many tokens.
  virtual int64_t work_size(int64_t tokens) const = 0;

  /// Called by every thread of the team. state: made by this block's new_state, and prepared for these tokens.
  virtual void forward(const BlockArgs& args, BlockState& state, const kernels::Context& context) const noexcept = 0;
};

/// Where a block finds its weights: `matrices` has the large ones by id, vectors are read from the checkpoint.
struct WeightSource {
  const Checkpoint& checkpoint;
  const ModelDesc& model;
  std::span<const Weight> matrices;  // by WeightId; must outlive the block

  const Weight* matrix(WeightId id) const { return &matrices[static_cast<size_t>(id)]; }
  /// Empty for kNoWeight.
  std::vector<float> vector(WeightId id) const {
    if (id == kNoWeight) return {};
    return load_vector(checkpoint, model.weights[static_cast<size_t>(id)]);
  }
};

/// Builds the block that `desc` describes. Throws `Error` if a weight is missing or malformed.
std::unique_ptr<Block> make_block(const BlockDesc& desc, const WeightSource& source);

}  // namespace hxq
