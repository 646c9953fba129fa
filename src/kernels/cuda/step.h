#pragma once

#include <variant>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/mamba_step.h"

/// What a token of one sequence goes through, many operations one after the other, as one kernel.
namespace hxq::cuda {

/// Products with the same x. Everything is float.
struct StepProducts {
  FusedInput input = {};
  int64_t count = 0;
  FusedProduct products[kMaxFusedProducts] = {};  // [count]
};

/// The batch of an operation has one sequence with one row.
using StepOperation = std::variant<StepProducts, MambaStepArgs>;

/// Whether a step on the current device may contain the operation.
bool supports_step(const StepOperation& operation) noexcept;

struct StepSize {
  size_t bytes = 0;        ///< of device memory, cleared, that is the step's as long as it is run
  size_t image_bytes = 0;  ///< what the caller has to copy to its beginning
};

/// What `run_step` runs.
struct Step {
  void* memory = nullptr;
  int32_t operations = 0;
  int32_t x_floats = 0;  ///< room for the longest x
};

/// 0 bytes: these operations cannot be one step.
StepSize step_size(const StepOperation* operations, int64_t count) noexcept;
/// image: [image_bytes] in memory of the host. `memory`: where the step will be on the current device.
Status write_step(const StepOperation* operations, int64_t count, void* memory, void* image, Step& step) noexcept;
/// Once, when the image has been copied to `memory`: what blocks work on.
Status lay_out_step(const Step& step, Stream stream) noexcept;
/// Runs the operations in their order. The kernel takes the whole device: it begins when every multiprocessor is free.
Status run_step(const Step& step, Stream stream) noexcept;

}  // namespace hxq::cuda
