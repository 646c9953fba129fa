#include "kernels/device.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <mutex>
#include <new>

#include "hxq/error.h"
#include "kernels/cuda_device/cuda_device.h"

namespace hxq::kernels {
namespace {

struct Added {
  std::mutex mutex;
  std::vector<std::unique_ptr<const Device>> devices;
};

Added& added() {
  static Added kept;
  return kept;
}

}  // namespace

void Device::copy(std::byte* to, const std::byte* from, size_t bytes) const {
  std::vector<std::byte> on_host;
  try {
    on_host.resize(bytes);
  } catch (const std::bad_alloc&) {
    throw OutOfMemory("a copy", bytes);
  }
  download(on_host, from);
  upload(to, on_host);
}

std::byte* Device::allocate_on_host(size_t bytes, std::string_view what) const {
  return cpu_device().allocate(bytes, what);
}

void Device::free_on_host(std::byte* memory, size_t bytes) const noexcept { cpu_device().free(memory, bytes); }

const Device& find_device(std::string_view name) {
  if (name == cpu_device().name()) return cpu_device();
  if (is_cuda_name(name)) return cuda_device(name);
  std::vector<std::string_view> names = {cpu_device().name(), "cuda", "cuda:N"};
  const std::lock_guard lock(added().mutex);
  for (const auto& device : added().devices) {
    if (device->name() == name) return *device;
    names.push_back(device->name());
  }
  throw Error(fmt::format("there is no device '{}': expected one of {}", name, fmt::join(names, ", ")));
}

void add_device(std::unique_ptr<const Device> device) {
  const std::lock_guard lock(added().mutex);
  added().devices.push_back(std::move(device));
}

}  // namespace hxq::kernels
