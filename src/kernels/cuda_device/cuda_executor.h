#pragma once

#include <memory>
#include <vector>

#include "kernels/cuda_device/cuda_context.h"
#include "kernels/cuda_device/cuda_device.h"
#include "kernels/cuda_device/cuda_steps.h"

namespace hxq::kernels {

/// Launches code into the device's stream; what comes a second time with the same key becomes a graph.
class CudaExecutor final : public Executor {
 public:
  CudaExecutor(const CudaDevice& device, const ExecutorOptions& options);
  ~CudaExecutor() override;
  CudaExecutor(const CudaExecutor&) = delete;
  CudaExecutor& operator=(const CudaExecutor&) = delete;

  void reserve(const DeviceCode& code) override;
  void run(int threads, const DeviceCode& code, uint64_t key) override;

 private:
  /// Code that was run under a key.
  struct Known {
    uint64_t key;
    std::unique_ptr<CudaSteps> steps;
    cuda::Graph graph = nullptr;  // of the second run
  };

  void launch(const DeviceCode& code, cuda::Stream stream, CudaSteps* steps) const;
  cuda::Graph record(const DeviceCode& code, CudaSteps* steps) const;
  void forget() noexcept;

  const CudaDevice& device_;
  Precision precision_;
  cuda::Stream recording_ = nullptr;  // its own, so that what other threads ask of the device is not recorded
  DeviceArray<std::byte> scratch_ = {};
  DeviceArray<std::byte> mamba_exchange_ = {}, transformer_exchange_ = {};  // see CudaLayers
  std::vector<Known> known_ = {};                                           // the last used first
};

}  // namespace hxq::kernels
