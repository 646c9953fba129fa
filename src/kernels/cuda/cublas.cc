#include "kernels/cuda/cublas.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <atomic>
#include <mutex>

namespace hxq::cuda {
namespace {

// What is used of cublas_v2.h, which need not be there.
using Handle = void*;
constexpr int kNoTranspose = 0, kTranspose = 1, kComputeFloat = 68, kDefaultAlgorithm = -1;

struct Library {
  int (*create)(Handle*) = nullptr;
  int (*set_stream)(Handle, cudaStream_t) = nullptr;
  int (*set_workspace)(Handle, void*, size_t) = nullptr;
  int (*gemm)(Handle, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
              void*, int, int, int, int) = nullptr;
};

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

bool load(Library& known) {
  for (const int flags : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW}) {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      void* library = dlopen(name, flags);
      if (library && find(library, "cublasCreate_v2", known.create) &&
          find(library, "cublasSetStream_v2", known.set_stream) &&
          find(library, "cublasSetWorkspace_v2", known.set_workspace) && find(library, "cublasGemmEx", known.gemm)) {
        return true;
      }
    }
  }
  return false;
}

constexpr int kMaxDevices = 64;
constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what cuBLAS recommends for Hopper

struct State {
  std::mutex mutex;  // a handle serves one stream at a time
  bool is_loaded = false, was_tried = false;
  Library library;
  /// Sizes of workspaces depend on whether a device has one, so the first answer stays.
  bool is_known[kMaxDevices] = {};
  std::atomic<Handle> handles[kMaxDevices] = {};
};

State& state() {
  static State* instance = new State;  // outlives every other static object
  return *instance;
}

int device_now() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && device < kMaxDevices ? device : -1;
}

}  // namespace

bool open_cublas() noexcept {
  State& s = state();
  const std::scoped_lock lock(s.mutex);
  const int device = device_now();
  if (device < 0) return false;
  if (!s.was_tried) {
    s.was_tried = true;
    s.is_loaded = load(s.library);
  }
  if (!s.is_loaded || s.is_known[device]) return s.handles[device] != nullptr;
  s.is_known[device] = true;
  Handle handle = nullptr;
  void* workspace = nullptr;
  if (s.library.create(&handle) != 0 || cudaMalloc(&workspace, kWorkspaceBytes) != cudaSuccess ||
      s.library.set_workspace(handle, workspace, kWorkspaceBytes) != 0) {
    return false;
  }
  s.handles[device] = handle;
  return true;
}

bool has_cublas() noexcept {
  const int device = device_now();
  return device >= 0 && state().handles[device] != nullptr;
}

Status cublas_product(const void* w, int64_t rows, int64_t cols, const Input& x, const Output& y, int64_t tokens,
                      bool accumulate, Stream stream) noexcept {
  State& s = state();
  const std::scoped_lock lock(s.mutex);
  const float one = 1, beta = accumulate ? 1.0f : 0.0f;
  const int x_type = x.dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
  const int y_type = y.dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
  Handle handle = s.handles[device_now()];
  const bool is_right =
      s.library.set_stream(handle, static_cast<cudaStream_t>(stream)) == 0 &&
      s.library.gemm(handle, kTranspose, kNoTranspose, static_cast<int>(rows), static_cast<int>(tokens),
                     static_cast<int>(cols), &one, w, x_type, static_cast<int>(cols), x.data, x_type,
                     static_cast<int>(x.stride), &beta, y.data, y_type, static_cast<int>(y.stride), kComputeFloat,
                     kDefaultAlgorithm) == 0;
  return is_right ? Status::ok : static_cast<Status>(cudaErrorLaunchFailure);
}

}  // namespace hxq::cuda
