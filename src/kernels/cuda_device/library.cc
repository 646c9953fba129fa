#include "kernels/cuda_device/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "hxq/error.h"

namespace hxq::kernels {
namespace {

constexpr const char* kName = "libhxq_cuda.so";

std::vector<std::string> places() {
  std::vector<std::string> found;
  const auto add_beside = [&](const char* path) {
    std::error_code fault;
    const std::filesystem::path file = std::filesystem::canonical(path, fault);
    if (fault) return;
    found.push_back(file.parent_path() / kName);
    found.push_back(file.parent_path().parent_path() / "lib" / kName);
  };
  Dl_info own;
  if (dladdr(reinterpret_cast<const void*>(&cuda_library), &own) != 0 && own.dli_fname != nullptr) {
    add_beside(own.dli_fname);
  }
  add_beside("/proc/self/exe");
  found.push_back(kName);
  return found;
}

void* open_library() {
  for (const std::string& place : places()) {
    std::error_code fault;
    const bool is_file = place.find('/') != std::string::npos;
    if (is_file && !std::filesystem::exists(place, fault)) continue;
    if (void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    if (is_file) throw Error(fmt::format("the library cannot be opened: {}", dlerror()));
  }
  throw Error(
      fmt::format("{} is neither beside the program nor where the loader looks; a build with nvcc makes it", kName));
}

const cuda::Kernels* load() {
  void* library = open_library();
  const auto kernels = reinterpret_cast<decltype(&hxq_cuda_kernels)>(dlsym(library, "hxq_cuda_kernels"));
  const cuda::Kernels* table = kernels == nullptr ? nullptr : kernels();
  if (table != nullptr && table->version == cuda::Kernels::kVersion) return table;
  dlclose(library);
  throw Error(fmt::format("the {} that was found belongs to another version of hxq", kName));
}

}  // namespace

const cuda::Kernels& cuda_library() {
  static std::mutex mutex;
  static const cuda::Kernels* table = nullptr;  // stays open: its threads and memory outlive every device
  const std::lock_guard lock(mutex);
  if (table == nullptr) table = load();
  return *table;
}

void check_gpu(const cuda::Kernels& kernels, int number) {
  int count = 0;
  cuda::Status status = kernels.count_devices(count);
  if (status == cuda::Status::no_driver)
    throw Error("this machine has no NVIDIA driver, or one older than this build needs");
  if (status != cuda::Status::ok) throw Error(kernels.describe(status));
  if (number >= count) throw Error(fmt::format("this machine has {} GPU{}", count, count == 1 ? "" : "s"));
  cuda::DeviceDescription description;
  status = kernels.describe_device(number, description);
  if (status != cuda::Status::ok) {
    throw Error(fmt::format("beginning to work with it failed: {}", kernels.describe(status)));
  }
  if (!description.has_kernels) {
    throw Error(fmt::format("the kernels of this build do not run on this {} (compute capability {}.{})",
                            description.name, description.compute_capability / 10,
                            description.compute_capability % 10));
  }
}

}  // namespace hxq::kernels
