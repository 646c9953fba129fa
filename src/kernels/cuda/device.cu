// What is asked of CUDA itself: facts of a device for launchers, and the functions of runtime.h.

#include <cuda_runtime.h>

#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/runtime.h"

namespace hxq::cuda {
namespace {

constexpr int kMaxDevices = 64;

/// To ask whether this build has machine code for a device, and how many clusters have room.
__global__ void probe_kernel() {}

/// Of blocks with nearly all of a multiprocessor's shared memory.
void count_clusters(DeviceFacts& facts) {
  constexpr size_t kSharedBytes = 160 * 1024;
  cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);  // beyond 8 blocks
  for (int size = 2; size <= DeviceFacts::kMostBlocks; ++size) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(size);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(size));
    config.blockDim = dim3(256);
    config.dynamicSmemBytes = kSharedBytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int count = 0;
    if (cudaOccupancyMaxActiveClusters(&count, probe_kernel, &config) == cudaSuccess) facts.clusters[size] = count;
  }
  cudaGetLastError();  // where blocks cannot be that large
}

DeviceFacts read_facts(int device) {
  int major = 0, minor = 0;
  DeviceFacts facts;
  cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&facts.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  facts.compute_capability = 10 * major + minor;
  facts.clusters[1] = facts.multiprocessors;
  if (major >= 9) count_clusters(facts);
  return facts;
}

cudaStream_t of(Stream stream) { return static_cast<cudaStream_t>(stream); }

/// Freed memory stays with the process: the next sequence or step takes it without asking the system.
Status keep_freed_memory(int device) {
  cudaMemPool_t pool = nullptr;
  uint64_t everything = ~uint64_t{0};
  cudaError_t error = cudaDeviceGetDefaultMemPool(&pool, device);
  if (error == cudaSuccess) error = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &everything);
  return status_of(error);
}

}  // namespace

cudaError_t raise_shared_limit(const void* kernel, size_t bytes) noexcept {
  // Launches are many: what was raised is known without asking the driver.
  static std::mutex guard;
  static std::map<std::pair<int, const void*>, size_t> limits;  // by device and kernel
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::scoped_lock lock(guard);
  try {
    size_t& limit = limits[{device, kernel}];
    if (limit >= bytes) return cudaSuccess;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error == cudaSuccess) limit = bytes;
    return error;
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
}

DeviceFacts current_device() noexcept {
  static DeviceFacts known[kMaxDevices];
  static std::once_flag once[kMaxDevices];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return {};
  std::call_once(once[device], [&] { known[device] = read_facts(device); });
  return known[device];
}

const char* describe(Status status) noexcept { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

Status count_devices(int& count) noexcept {
  count = 0;
  return status_of(cudaGetDeviceCount(&count));
}

Status describe_device(int device, DeviceDescription& description) noexcept {
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device); error != cudaSuccess) {
    return status_of(error);
  }
  std::strncpy(description.name, properties.name, sizeof(description.name) - 1);
  description.compute_capability = 10 * properties.major + properties.minor;
  description.memory_bytes = properties.totalGlobalMem;
  int previous = 0;
  if (const Status status = use_device(device, previous); status != Status::ok) return status;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  cudaGetLastError();  // that there is no kernel is an answer
  description.has_kernels = error == cudaSuccess;
  const bool has_none = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  Status status = has_none ? Status::ok : status_of(error);
  if (status == Status::ok) status = keep_freed_memory(device);
  use_device(previous, previous);
  return status;
}

Status use_device(int device, int& previous) noexcept {
  cudaError_t error = cudaGetDevice(&previous);
  if (error == cudaSuccess && previous != device) error = cudaSetDevice(device);
  return status_of(error);
}

Status create_stream(Stream& stream) noexcept {
  cudaStream_t made = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  stream = made;
  return status_of(error);
}

void destroy_stream(Stream stream) noexcept { cudaStreamDestroy(of(stream)); }

Status wait_for(Stream stream) noexcept { return status_of(cudaStreamSynchronize(of(stream))); }

Status allocate(void*& memory, size_t bytes, Stream stream) noexcept {
  memory = nullptr;
  const cudaError_t error = cudaMallocAsync(&memory, bytes, of(stream));
  cudaGetLastError();  // running out of memory breaks nothing
  return status_of(error);
}

void deallocate(void* memory, Stream stream) noexcept { cudaFreeAsync(memory, of(stream)); }

Status allocate_on_host(void*& memory, size_t bytes) noexcept {
  memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, bytes);
  cudaGetLastError();
  return status_of(error);
}

void deallocate_on_host(void* memory) noexcept { cudaFreeHost(memory); }

Status upload(void* to, const void* from, size_t bytes, Stream stream) noexcept {
  return status_of(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, of(stream)));
}

Status download(void* to, const void* from, size_t bytes, Stream stream) noexcept {
  return status_of(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, of(stream)));
}

Status clear(void* memory, size_t bytes, Stream stream) noexcept {
  return status_of(cudaMemsetAsync(memory, 0, bytes, of(stream)));
}

Status begin_recording(Stream stream) noexcept {
  return status_of(cudaStreamBeginCapture(of(stream), cudaStreamCaptureModeThreadLocal));
}

Status end_recording(Stream stream, Graph& graph) noexcept {
  graph = nullptr;
  cudaGraph_t recorded = nullptr;
  cudaError_t error = cudaStreamEndCapture(of(stream), &recorded);
  if (error != cudaSuccess) return status_of(error);
  cudaGraphExec_t made = nullptr;
  error = cudaGraphInstantiate(&made, recorded, 0);
  cudaGraphDestroy(recorded);
  graph = made;
  return status_of(error);
}

Status launch_graph(Graph graph, Stream stream) noexcept {
  return status_of(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), of(stream)));
}

void destroy_graph(Graph graph) noexcept { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

}  // namespace hxq::cuda
