#pragma once

#include <memory>
#include <vector>

#include "hxq/model.h"
#include "io/checkpoint.h"
#include "layers/block.h"
#include "layers/norm.h"
#include "model/step_threads.h"

namespace hxq {

/// The rows of a step, as far as they decide what is computed and what memory that takes.
struct StepShape {
  int64_t rows = 0;
  int64_t decode_rows = 0;  ///< these come first
  int64_t segments = 0;
  int64_t wanted = 0;         ///< rows whose outputs are asked for
  int64_t wanted_decode = 0;  ///< of these, decode rows, which come first
  bool hidden = false;        ///< outputs are hidden states after the final norm, not logits
  bool most_likely = false;   ///< of some of the wanted rows only the likeliest token is asked for
  bool few_positions = true;  ///< see kernels::Batch
  /// See kernels::Batch; a power of two, so that the steps of a long prompt have few shapes.
  int64_t prefill_positions = 0;

  bool operator==(const StepShape&) const = default;
};

/// What a step reads beside weights and states: one piece of memory, filled on the host and copied to the device.
struct StepInputs {
  StepInputs(WorkMemory memory, const StepShape& shape, int64_t state_arrays) noexcept
      : token(memory.take<int32_t>(shape.rows)),
        position(memory.take<int32_t>(shape.rows)),
        wanted(memory.take<int32_t>(shape.wanted)),
        segment(memory.take<kernels::RowRange>(shape.segments)),
        state(memory.take<void*>(state_arrays * shape.segments)) {}

  int32_t* token;              // [rows]
  int32_t* position;           // [rows]
  int32_t* wanted;             // [wanted]: rows
  kernels::RowRange* segment;  // [segments]
  void** state;                // [state arrays of all blocks, segments]
};

/// Where a step's results go: memory that the device can write to.
struct StepResults {
  float* outputs = nullptr;        // [shape.wanted, output_size]
  int32_t* most_likely = nullptr;  // [shape.wanted], where the shape asks for it
};

struct Model::Parts {
  explicit Parts(Checkpoint opened) : checkpoint(std::move(opened)) {}

  Checkpoint checkpoint;
  ModelDesc desc;
  ModelInfo info;
  StateOptions state_options;
  bool adapt_threads = false;    // of decode steps on the CPU; the user did not say how many
  std::vector<Weight> matrices;  // by WeightId; null for what is not a matrix
  std::vector<std::unique_ptr<Block>> blocks;
  int64_t state_arrays = 0;  // of all blocks
  std::unique_ptr<RmsNorm> final_norm;
  WeightId head = kNoWeight;

  const kernels::PreparedMatrix& matrix(WeightId id) const { return *matrices[static_cast<size_t>(id)]; }
  /// Reads the description and the weights of the checkpoint. config_file: for messages.
  void load(const std::string& config_file, const ModelOptions& options);
  void load_weights();
  /// Of an output: a row of logits, or a hidden state.
  int64_t output_size(bool hidden) const noexcept { return hidden ? desc.hidden_size : desc.vocab_size; }
  /// A step on the device; see Block::forward.
  void run(const StepShape& shape, const StepInputs& inputs, WorkMemory work, const StepResults& results,
           const kernels::Context& context) const noexcept;
};

struct Sequence::Parts {
  explicit Parts(const Model::Parts& model);
  /// Writes the addresses of its arrays to column `segment` of [state_arrays, segments].
  void put_arrays(int64_t segment, int64_t segments, void** addresses) const noexcept;

  const Model::Parts* model;  ///< the only one that can use the states
  std::vector<std::unique_ptr<BlockState>> blocks;
  int64_t position = 0;
};

struct Workspace::Parts {
  explicit Parts(const Model::Parts& model);
  /// What is known of a shape that memory was taken for.
  struct Reserved {
    StepShape shape;
    size_t input_bytes;
    uint64_t key;  ///< of the step's code; see kernels::Executor::run
  };

  /// Takes the memory that steps of this shape need. Throws `OutOfMemory`.
  void reserve(const StepShape& shape);
  /// Where a step's inputs are to be written before it is run.
  StepInputs inputs_on_host(const StepShape& shape) noexcept;
  /// Runs a step that memory was reserved for. to: [rows, output_size], on the host, for those of the wanted rows from
  /// `first` on; all of them unless the shape asks for likeliest tokens, which come to `most_likely`.
  void run(const StepShape& shape, float* to, int64_t first, int64_t rows);
  const Reserved* find_reserved(const StepShape& shape) const noexcept;

  const Model::Parts* model;
  std::unique_ptr<kernels::Executor> executor;
  StepThreads step_threads;
  int64_t timed_rows = 0;          // of the steps that step_threads has seen
  std::vector<Reserved> reserved;  // the last ones, for the memory as it lies now
  uint64_t next_key = 1;
  kernels::DeviceArray<std::byte> host_inputs;  // host memory, whatever the device
  kernels::DeviceArray<std::byte> inputs;
  kernels::DeviceArray<std::byte> work;
  kernels::DeviceArray<float> outputs;          // where the device cannot write to the caller's
  kernels::HostArray<int32_t> most_likely;      // of each wanted row of a step
  kernels::HostArray<float> logits_of_callers;  // what Workspace::logits gives
};

}  // namespace hxq
