#pragma once

#include <span>
#include <vector>

#include "kernels/cuda_device/cuda_device.h"

namespace hxq::kernels {

/// The steps (kernels/cuda/step.h) of a piece of code, in the order in which it launches them: laid out when it runs
/// for the first time, and then run again.
class CudaSteps {
 public:
  /// Fewer operations are faster as kernels of their own, which begin before their predecessors end.
  static constexpr size_t kFewestOperations = 6;

  explicit CudaSteps(const CudaDevice& device) : device_(device) {}

  /// The code begins again, which asks for the same operations each time.
  void rewind() noexcept { next_ = 0; }
  /// False, and nothing is launched, where the operations cannot be one step or there is no memory for it. Throws
  /// `Error`.
  bool run(std::span<const cuda::StepOperation> operations, cuda::Stream stream);

 private:
  struct Known {
    DeviceArray<std::byte> memory = {};  ///< empty: these operations cannot be a step
    cuda::Step step = {};
  };

  Known laid_out(std::span<const cuda::StepOperation> operations) const;

  const CudaDevice& device_;
  std::vector<Known> known_ = {};
  size_t next_ = 0;
};

}  // namespace hxq::kernels
