#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "desc/model_desc.h"
#include "hxq/model.h"
#include "kernels/batch.h"
#include "kernels/device.h"
#include "layers/weight.h"
#include "layers/work_memory.h"

namespace hxq {

/// How states keep what they remember, and where.
struct StateOptions {
  const kernels::Device* device = nullptr;
  DType kv_cache = DType::f32;  ///< F32 or F16
};

/// What one block remembers of one sequence so far: arrays in device memory.
class BlockState {
 public:
  virtual ~BlockState() = default;
  /// Back to the start of a sequence.
  virtual void reset() = 0;
  /// Remembers what `other`, a state of the same block, does after `positions`. Throws `OutOfMemory`.
  virtual void copy_from(const BlockState& other, int64_t positions) = 0;
  /// Memory that it has, in bytes; what it shares with others included.
  virtual int64_t bytes() const noexcept = 0;
  /// Makes room for positions [0, positions). `end`: the length the sequence will have after the prompt or token that
  /// the positions belong to, which may come in several steps. Throws `OutOfMemory`; what it remembers stays.
  virtual void reserve([[maybe_unused]] int64_t positions, [[maybe_unused]] int64_t end) {}
  /// Puts the addresses of its arrays, in the order that its block knows. Valid until the next `reserve`.
  virtual void put_arrays(std::span<void*> arrays) const noexcept = 0;
  /// What it remembers of that kind after `positions`, on the host; no shape where that is nothing.
  virtual StateValues read(StateKind kind, int64_t positions) const = 0;
};

/// A copy of a state's array on the host.
StateValues read_state(const kernels::DeviceArray<float>& array, Shape shape);

/// The arrays of a batch's sequences for one block, in device memory.
class StateArrays {
 public:
  /// address: [arrays, segments].
  StateArrays(void* const* address, int64_t segments) noexcept : address_(address), segments_(segments) {}

  /// [segments]: the array with this number of each.
  void* const* array(int64_t number) const noexcept { return address_ + number * segments_; }

  /// Those from array `first` on: of a layer that is a part of the block.
  StateArrays from(int64_t first) const noexcept { return {array(first), segments_}; }

 private:
  void* const* address_;
  int64_t segments_;
};

/// What a block works on. All threads of the team get the same.
struct BlockArgs {
  float* x = nullptr;                // [rows, hidden], updated in place
  const float* embedding = nullptr;  // [rows, hidden], what the first block got; null unless the model asks for it
  kernels::Batch batch = {};
  StateArrays state;
  WorkMemory work;
};

/// One residual block of a model: x += f(norm(x)). Immutable; everything that changes is in the states of sequences.
class Block {
 public:
  virtual ~Block() = default;

  virtual std::unique_ptr<BlockState> new_state() const = 0;

  /// How many arrays a state has, at most kMostStateArrays.
  virtual int64_t state_arrays() const noexcept = 0;
  static constexpr int64_t kMostStateArrays = 8;

  /// Called by every thread of the team; also to measure the memory it takes, where no pointer may be followed.
  virtual void forward(const BlockArgs& args, const kernels::Context& context) const noexcept = 0;
};

/// Where a block finds its weights: `matrices` has the large ones by id, vectors are read from the checkpoint.
struct WeightSource {
  const Checkpoint& checkpoint;
  const ModelDesc& model;
  std::span<const Weight> matrices;  // by WeightId; must outlive the block
  StateOptions state;                ///< of the blocks' states; the weights are on the same device

  const kernels::PreparedMatrix* matrix(WeightId id) const { return matrices[static_cast<size_t>(id)].get(); }
  /// On the host; empty for kNoWeight.
  std::vector<float> host_vector(WeightId id) const {
    if (id == kNoWeight) return {};
    return load_vector(checkpoint, model.weights[static_cast<size_t>(id)]);
  }
  kernels::DeviceArray<float> upload(std::span<const float> values) const {
    return {*state.device, values, "a weight"};
  }
  kernels::DeviceArray<float> vector(WeightId id) const { return upload(host_vector(id)); }
};

/// Builds the block that `desc` describes. Throws `Error` if a weight is missing or malformed, `OutOfMemory`.
std::unique_ptr<Block> make_block(const BlockDesc& desc, const WeightSource& source);

}  // namespace hxq
