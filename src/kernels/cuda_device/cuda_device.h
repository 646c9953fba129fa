#pragma once

#include <map>
#include <mutex>
#include <string>

#include "kernels/cuda/table.h"
#include "kernels/device.h"

namespace hxq::kernels {

/// An NVIDIA GPU. Everything happens in one stream, in the order in which it is asked for; `download` waits for it.
/// What fails on the GPU throws `Error` with the device's name, there or at a later call.
class CudaDevice final : public Device {
 public:
  /// Throws `Error` if there is no such GPU or none that the kernels run on.
  explicit CudaDevice(int number);

  std::string_view name() const noexcept override { return name_; }
  std::byte* allocate(size_t bytes, std::string_view what) const override;
  void free(std::byte* memory, size_t bytes) const noexcept override;
  void upload(std::byte* to, std::span<const std::byte> from) const override;
  void download(std::span<std::byte> to, const std::byte* from) const override;
  void clear(std::byte* memory, size_t bytes) const override;
  void wait() const override;
  std::byte* allocate_on_host(size_t bytes, std::string_view what) const override;
  void free_on_host(std::byte* memory, size_t bytes) const noexcept override;
  std::unique_ptr<const PreparedMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) const override;
  int64_t step_rows() const noexcept override { return 2048; }
  std::unique_ptr<Executor> new_executor(const ExecutorOptions& options) const override;

  const cuda::Kernels& kernels() const noexcept { return kernels_; }
  cuda::Stream stream() const noexcept { return stream_; }
  /// Throws unless the status is `ok`; `what` was to be done.
  void check(cuda::Status status, std::string_view what) const;

  /// Bytes of matrices by where they lie in the host's memory, and where the same bytes lie on the device.
  using Copies = std::map<const std::byte*, const std::byte*>;
  /// While it lives, matrices over those bytes are not copied: they are run where they lie on the device.
  class Lent {
   public:
    Lent(const CudaDevice& device, Copies copies) : device_(device) { device_.lend(std::move(copies)); }
    ~Lent() { device_.lend({}); }
    Lent(const Lent&) = delete;
    Lent& operator=(const Lent&) = delete;

   private:
    const CudaDevice& device_;
  };
  /// Where those bytes lie on the device, or null.
  const std::byte* lent(const std::byte* on_host) const;

  /// Makes the device the calling thread's current one while it lives.
  class Use {
   public:
    explicit Use(const CudaDevice& device) noexcept : kernels_(device.kernels_), number_(device.number_) {
      kernels_.use_device(number_, previous_);
    }
    ~Use() {
      if (previous_ != number_) kernels_.use_device(previous_, number_);
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    const cuda::Kernels& kernels_;
    int number_;
    int previous_ = 0;
  };

 private:
  void lend(Copies copies) const;

  const cuda::Kernels& kernels_;
  int number_;
  std::string name_;
  cuda::Stream stream_ = nullptr;
  mutable std::mutex mutex_ = {};                         // of what follows
  void* staging_ = nullptr;                               // memory that results go through on their way elsewhere
  mutable std::map<const std::byte*, size_t> host_ = {};  // what `allocate_on_host` has given
  mutable Copies lent_ = {};
};

/// "cuda", or "cuda:N". Opened when first asked for; stays for the rest of the process. Throws `Error`.
const Device& cuda_device(std::string_view name);
bool is_cuda_name(std::string_view name) noexcept;

}  // namespace hxq::kernels
