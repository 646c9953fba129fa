#include "kernels/cuda_device/cuda_steps.h"

#include "hxq/error.h"

namespace hxq::kernels {

CudaSteps::Known CudaSteps::laid_out(std::span<const cuda::StepOperation> operations) const {
  const cuda::Kernels& kernels = device_.kernels();
  const auto count = std::ssize(operations);
  const cuda::StepSize size = kernels.step_size(operations.data(), count);
  if (size.bytes == 0) return {};
  Known known;
  try {
    known.memory = {device_, static_cast<int64_t>(size.bytes), "the operations of a step"};
  } catch (const OutOfMemory&) {
    return {};  // kernel by kernel they need no memory
  }
  std::vector<std::byte> image(size.image_bytes);
  device_.check(kernels.write_step(operations.data(), count, known.memory.data(), image.data(), known.step),
                "laying out a step");
  known.memory.clear();
  known.memory.upload(image);
  device_.check(kernels.lay_out_step(known.step, device_.stream()), "laying out a step");
  return known;
}

bool CudaSteps::run(std::span<const cuda::StepOperation> operations, cuda::Stream stream) {
  if (next_ == known_.size()) known_.push_back(laid_out(operations));
  const Known& known = known_[next_++];
  if (known.memory.bytes() == 0) return false;
  device_.check(device_.kernels().run_step(known.step, stream), "a step");
  return true;
}

}  // namespace hxq::kernels
