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
/// functions run, and memory on the host not between code that may write there and a wait for it. What reads or writes
/// them elsewhere ends the process.
class GuardedDevice final : public kernels::Device {
 public:
  std::string_view name() const noexcept override { return "guarded"; }

  std::byte* allocate(size_t bytes, std::string_view what) const override {
    return map(bytes, what, PROT_NONE, allocated_);
  }
  void free(std::byte* memory, size_t bytes) const noexcept override { unmap(memory, bytes, allocated_); }
  std::byte* allocate_on_host(size_t bytes, std::string_view what) const override {
    return map(bytes, what, kOpen, on_host_);
  }
  void free_on_host(std::byte* memory, size_t bytes) const noexcept override { unmap(memory, bytes, on_host_); }

  void upload(std::byte* to, std::span<const std::byte> from) const override {
    opened([&] { std::memcpy(to, from.data(), from.size()); });
  }
  void download(std::span<std::byte> to, const std::byte* from) const override {
    wait();
    opened([&] { std::memcpy(to.data(), from, to.size()); });
  }
  void wait() const override {
    const std::lock_guard lock(mutex_);
    protect(on_host_, kOpen);
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
      device_.wait();
      device_.opened([&] { cpu_->run(threads, code, key); });
      const std::lock_guard lock(device_.mutex_);
      protect(device_.on_host_, PROT_NONE);
    }

   private:
    const GuardedDevice& device_;
    std::unique_ptr<kernels::Executor> cpu_;
  };

  static size_t pages(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }

  using Memory = std::map<std::byte*, size_t>;
  static constexpr int kOpen = PROT_READ | PROT_WRITE;

  std::byte* map(size_t bytes, std::string_view what, int access, Memory& all) const {
    const size_t size = pages(bytes);
    void* memory = mmap(nullptr, size, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw OutOfMemory(what, bytes);
    const std::lock_guard lock(mutex_);
    all[static_cast<std::byte*>(memory)] = size;
    return static_cast<std::byte*>(memory);
  }
  void unmap(std::byte* memory, size_t bytes, Memory& all) const noexcept {
    const std::lock_guard lock(mutex_);
    all.erase(memory);
    munmap(memory, pages(bytes));
  }

  template <class Body>
  void opened(const Body& body) const {
    const std::lock_guard lock(mutex_);
    protect(allocated_, kOpen);
    body();
    protect(allocated_, PROT_NONE);
  }

  static void protect(const Memory& all, int access) {
    for (const auto& [memory, size] : all) mprotect(memory, size, access);
  }

  mutable std::mutex mutex_;
  mutable Memory allocated_, on_host_;
};

}  // namespace hxq::testing
