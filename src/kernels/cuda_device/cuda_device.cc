#include "kernels/cuda_device/cuda_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <iterator>
#include <utility>

#include "hxq/error.h"
#include "kernels/cuda_device/cuda_executor.h"
#include "kernels/cuda_device/cuda_matrix.h"
#include "kernels/cuda_device/library.h"

namespace hxq::kernels {
namespace {

constexpr std::string_view kKind = "cuda";
constexpr size_t kStagingBytes = size_t{1} << 20;

/// N of "cuda:N", 0 of "cuda". Throws `Error`.
int number_of(std::string_view name) {
  if (name == kKind) return 0;
  const std::string_view digits = name.substr(kKind.size() + 1);
  int number = 0;
  const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (fault != std::errc() || end != digits.data() + digits.size() || number < 0) {
    throw Error(fmt::format("there is no device '{}': expected {} or {}:N", name, kKind, kKind));
  }
  return number;
}

}  // namespace

CudaDevice::CudaDevice(int number)
    : kernels_(cuda_library()), number_(number), name_(fmt::format("{}:{}", kKind, number)) {
  check_gpu(kernels_, number);
  const Use use(*this);
  check(kernels_.create_stream(stream_), "taking it");
  if (kernels_.allocate_on_host(staging_, kStagingBytes) != cuda::Status::ok) {
    throw OutOfMemory("what is copied from a GPU", kStagingBytes);
  }
  kernels_.open_cublas();  // without it the kernels multiply prompts themselves
}

void CudaDevice::check(cuda::Status status, std::string_view what) const {
  if (status == cuda::Status::ok) return;
  throw Error(fmt::format("{}: {} failed: {}", name_, what, kernels_.describe(status)));
}

std::byte* CudaDevice::allocate(size_t bytes, std::string_view what) const {
  const Use use(*this);
  void* memory = nullptr;
  const cuda::Status status = kernels_.allocate(memory, bytes, stream_);
  if (status == cuda::Status::out_of_memory) throw OutOfMemory(fmt::format("{} on {}", what, name_), bytes);
  check(status, "taking memory");
  return static_cast<std::byte*>(memory);
}

void CudaDevice::free(std::byte* memory, size_t) const noexcept {
  const Use use(*this);
  kernels_.deallocate(memory, stream_);
}

void CudaDevice::upload(std::byte* to, std::span<const std::byte> from) const {
  const Use use(*this);
  check(kernels_.upload(to, from.data(), from.size(), stream_), "copying to it");
}

void CudaDevice::download(std::span<std::byte> to, const std::byte* from) const {
  const Use use(*this);
  const std::lock_guard lock(mutex_);
  const auto after = host_.upper_bound(to.data());
  const bool direct = after != host_.begin() && to.data() < std::prev(after)->first + std::prev(after)->second;
  for (size_t done = 0; done < to.size();) {
    const size_t part = direct ? to.size() : std::min(to.size() - done, kStagingBytes);
    check(kernels_.download(direct ? to.data() : staging_, from + done, part, stream_), "copying from it");
    check(kernels_.wait_for(stream_), "its work");
    if (!direct) std::memcpy(to.data() + done, staging_, part);
    done += part;
  }
}

void CudaDevice::wait() const {
  const Use use(*this);
  check(kernels_.wait_for(stream_), "its work");
}

std::byte* CudaDevice::allocate_on_host(size_t bytes, std::string_view what) const {
  const Use use(*this);
  void* memory = nullptr;
  if (kernels_.allocate_on_host(memory, bytes) != cuda::Status::ok) throw OutOfMemory(what, bytes);
  const std::lock_guard lock(mutex_);
  host_[static_cast<std::byte*>(memory)] = bytes;
  return static_cast<std::byte*>(memory);
}

void CudaDevice::free_on_host(std::byte* memory, size_t) const noexcept {
  const Use use(*this);
  const std::lock_guard lock(mutex_);
  host_.erase(memory);
  kernels_.deallocate_on_host(memory);
}

void CudaDevice::clear(std::byte* memory, size_t bytes) const {
  const Use use(*this);
  check(kernels_.clear(memory, bytes, stream_), "clearing memory");
}

std::unique_ptr<const PreparedMatrix> CudaDevice::prepare(std::unique_ptr<const StoredMatrix> stored) const {
  return prepare_for_cuda(*stored, *this);
}

void CudaDevice::lend(Copies copies) const {
  const std::lock_guard lock(mutex_);
  lent_ = std::move(copies);
}

const std::byte* CudaDevice::lent(const std::byte* on_host) const {
  const std::lock_guard lock(mutex_);
  const auto found = lent_.find(on_host);
  return found == lent_.end() ? nullptr : found->second;
}

std::unique_ptr<Executor> CudaDevice::new_executor(const ExecutorOptions& options) const {
  return std::make_unique<CudaExecutor>(*this, options);
}

bool is_cuda_name(std::string_view name) noexcept {
  return name.starts_with(kKind) && (name.size() == kKind.size() || name[kKind.size()] == ':');
}

const Device& cuda_device(std::string_view name) {
  static std::mutex mutex;
  static auto* devices = new std::map<int, std::unique_ptr<const CudaDevice>>;  // outlives every other static object
  const int number = number_of(name);
  const std::lock_guard lock(mutex);
  std::unique_ptr<const CudaDevice>& device = (*devices)[number];
  if (device) return *device;
  try {
    device = std::make_unique<CudaDevice>(number);
  } catch (const OutOfMemory&) {
    throw;
  } catch (const Error& error) {
    throw Error(fmt::format("device '{}' cannot be used: {}", name, error.what()));
  }
  return *device;
}

}  // namespace hxq::kernels
