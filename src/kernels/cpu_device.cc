#include <fmt/format.h>

#include <cstring>

#include "hxq/error.h"
#include "kernels/cpu/prepare.h"
#include "kernels/cpu_context.h"
#include "kernels/cpu_memory.h"
#include "kernels/device.h"

namespace hxq::kernels {
namespace {

class CpuExecutor final : public Executor {
 public:
  explicit CpuExecutor(const ExecutorOptions& options) : options_(options), scratch_(options.threads) {}

  void reserve(const DeviceCode& code) override {
    code(CpuContext::to_measure(options_.target, scratch_, options_.precision));
    scratch_.reserve();
  }

  void run(int threads, const DeviceCode& code, uint64_t) override {
    run_team(threads, [&](const Team& team) { code(CpuContext(team, options_.target, scratch_, options_.precision)); });
  }

 private:
  ExecutorOptions options_;
  Scratch scratch_;
};

class CpuDevice final : public Device {
 public:
  std::string_view name() const noexcept override { return "cpu"; }
  bool is_host() const noexcept override { return true; }

  std::byte* allocate(size_t bytes, std::string_view what) const override {
    std::byte* memory = allocate_cpu_memory(bytes);
    if (memory == nullptr) throw OutOfMemory(what, bytes);
    return memory;
  }
  void free(std::byte* memory, size_t bytes) const noexcept override { free_cpu_memory(memory, bytes); }
  void upload(std::byte* to, std::span<const std::byte> from) const override {
    std::memcpy(to, from.data(), from.size());
  }
  void download(std::span<std::byte> to, const std::byte* from) const override {
    std::memcpy(to.data(), from, to.size());
  }
  void clear(std::byte* memory, size_t bytes) const override { std::memset(memory, 0, bytes); }
  void wait() const override {}  // what it was asked is done when the call returns
  void copy(std::byte* to, const std::byte* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

  std::unique_ptr<const PreparedMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) const override {
    return cpu::prepare(std::move(stored));
  }

  std::unique_ptr<Executor> new_executor(const ExecutorOptions& options) const override {
    return std::make_unique<CpuExecutor>(options);
  }
};

}  // namespace

const Device& cpu_device() noexcept {
  static const CpuDevice kDevice;
  return kDevice;
}

}  // namespace hxq::kernels
