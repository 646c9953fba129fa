#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>

#include "hxq/error.h"
#include "kernels/device.h"

namespace hxq::testing {

/// A device of the CPU whose memory the host cannot reach: its pages may be touched only while the device's own
/// functions run. What reads or writes device memory elsewhere ends the process.
class GuardedDevice final : public kernels::Device {
 public:
  std::string_view name() const noexcept override { return "guarded"; }

  std::byte* allocate(size_t bytes, std::string_view what) const override {
    const size_t size = pages(bytes);
    void* memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw OutOfMemory(what, bytes);
    const std::lock_guard lock(mutex_);
    allocated_[static_cast<std::byte*>(memory)] = size;
    return static_cast<std::byte*>(memory);
  }

  void free(std::byte* memory, size_t bytes) const noexcept override {
    const std::lock_guard lock(mutex_);
    allocated_.erase(memory);
    munmap(memory, pages(bytes));
  }

  void upload(std::byte* to, std::span<const std::byte> from) const override {
    opened([&] { std::memcpy(to, from.data(), from.size()); });
  }
  void download(std::span<std::byte> to, const std::byte* from) const override {
    opened([&] { std::memcpy(to.data(), from, to.size()); });
  }
  void clear(std::byte* memory, size_t bytes) const override {
    opened([&] { std::memset(memory, 0, bytes); });
  }

  std::unique_ptr<const kernels::PreparedMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) const override {
    return kernels::cpu_device().prepare(std::move(stored));
  }

  std::unique_ptr<kernels::Executor> new_executor(const kernels::ExecutorOptions& options) const override {
    return std::make_unique<GuardedExecutor>(*this, options);
  }

 private:
  class GuardedExecutor final : public kernels::Executor {
   public:
    GuardedExecutor(const GuardedDevice& device, const kernels::ExecutorOptions& options)
        : device_(device), cpu_(kernels::cpu_device().new_executor(options)) {}
    void reserve(const kernels::DeviceCode& code) override { cpu_->reserve(code); }
    void run(int threads, const kernels::DeviceCode& code, uint64_t key) override {
      device_.opened([&] { cpu_->run(threads, code, key); });
    }

   private:
    const GuardedDevice& device_;
    std::unique_ptr<kernels::Executor> cpu_;
  };

  static size_t pages(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }

  template <class Body>
  void opened(const Body& body) const {
    const std::lock_guard lock(mutex_);
    protect(PROT_READ | PROT_WRITE);
    body();
    protect(PROT_NONE);
  }

  void protect(int access) const {
    for (const auto& [memory, size] : allocated_) mprotect(memory, size, access);
  }

  mutable std::mutex mutex_;
  mutable std::map<std::byte*, size_t> allocated_;
};

}  // namespace hxq::testing
