#include <mutex>

#include "kernels/cuda/device.cuh"

namespace hxq::cuda {
namespace {

constexpr int kMaxDevices = 64;

DeviceFacts read_facts(int device) {
  int major = 0, minor = 0;
  DeviceFacts facts;
  cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&facts.max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  facts.compute_capability = 10 * major + minor;
  return facts;
}

}  // namespace

DeviceFacts current_device() noexcept {
  static DeviceFacts known[kMaxDevices];
  static std::once_flag once[kMaxDevices];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return {};
  std::call_once(once[device], [&] { known[device] = read_facts(device); });
  return known[device];
}

const char* describe(Status status) noexcept { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace hxq::cuda
