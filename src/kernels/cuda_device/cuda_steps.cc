#include "kernels/cuda_device/cuda_steps.h"

namespace hxq::kernels {

bool CudaSteps::run(std::span<const cuda::StepOperation> operations, cuda::Stream stream) {
  const cuda::Kernels& kernels = device_.kernels();
  const auto count = std::ssize(operations);
  if (next_ == known_.size()) {
    Known known;
    if (const cuda::StepSize size = kernels.step_size(operations.data(), count); size.bytes > 0) {
      known.memory = {device_, static_cast<int64_t>(size.bytes), "the operations of a step"};
      std::vector<std::byte> image(size.image_bytes);
      device_.check(kernels.write_step(operations.data(), count, known.memory.data(), image.data(), known.step),
                    "laying out a step");
      known.memory.clear();
      known.memory.upload(image);
      device_.check(kernels.lay_out_step(known.step, device_.stream()), "laying out a step");
    }
    known_.push_back(std::move(known));
  }
  const Known& known = known_[next_++];
  if (known.memory.bytes() == 0) return false;
  device_.check(kernels.run_step(known.step, stream), "a step");
  return true;
}

}  // namespace hxq::kernels
