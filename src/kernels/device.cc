#include "kernels/device.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <mutex>

#include "hxq/error.h"

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

const Device& find_device(std::string_view name) {
  if (name == cpu_device().name()) return cpu_device();
  std::vector<std::string_view> names = {cpu_device().name()};
  const std::lock_guard lock(added().mutex);
  for (const auto& device : added().devices) {
    if (device->name() == name) return *device;
    names.push_back(device->name());
  }
  throw Error(fmt::format("there is no device '{}': this build has {}", name, fmt::join(names, ", ")));
}

void add_device(std::unique_ptr<const Device> device) {
  const std::lock_guard lock(added().mutex);
  added().devices.push_back(std::move(device));
}

}  // namespace hxq::kernels
