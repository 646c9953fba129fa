#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/context.h"
#include "kernels/prepared_matrix.h"

namespace hxq::kernels {

/// Code that runs on a device: `body(context, argument)` calls operations of the context, and nothing of it may throw.
struct DeviceCode {
  void (*body)(const Context& context, const void* argument) noexcept;
  const void* argument;

  /// Of a callable that outlives the call it is passed to.
  template <class Body>
  static DeviceCode of(const Body& callable) noexcept {
    return {[](const Context& context, const void* of) noexcept { (*static_cast<const Body*>(of))(context); },
            &callable};
  }
  void operator()(const Context& context) const noexcept { body(context, argument); }
};

struct ExecutorOptions {
  int threads = 1;  ///< of the CPU, at most
  Target target = Target::scalar;
  Precision precision = Precision::fast;
};

/// Runs code on a device, with the memory that its operations share. One thread of control at a time.
class Executor {
 public:
  virtual ~Executor() = default;

  /// Takes the memory that operations of `code` need beside their arguments. `code` is called with a context whose
  /// operations compute nothing: its pointers need not lead anywhere. Throws `OutOfMemory`; then nothing is reserved
  /// for other code either.
  virtual void reserve(const DeviceCode& code) = 0;

  /// Runs `code`, for which memory was reserved; what is asked of the device later comes after it. `threads`: of the
  /// CPU, at most as many as the executor was made for. `key`: the same, unless it is 0, only for code that calls the
  /// same operations with the same arguments: a device may record it once and then run the record. Throws `Error` where
  /// the device fails.
  virtual void run(int threads, const DeviceCode& code, uint64_t key) = 0;
};

/// Where a model's numbers live and its operations run. Device memory is touched by operations alone, and by the
/// functions here: the host may not be able to reach it. Functions throw `Error` where the device fails.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::string_view name() const noexcept = 0;

  /// Whether device memory is the host's, so that results can be written to where the caller wants them.
  virtual bool is_host() const noexcept { return false; }

  /// At least `bytes` bytes, aligned to 64; contents are undefined. Throws `OutOfMemory`, which names `what`.
  virtual std::byte* allocate(size_t bytes, std::string_view what) const = 0;
  virtual void free(std::byte* memory, size_t bytes) const noexcept = 0;
  virtual void upload(std::byte* to, std::span<const std::byte> from) const = 0;
  /// Waits for what the device was asked before.
  virtual void download(std::span<std::byte> to, const std::byte* from) const = 0;
  virtual void clear(std::byte* memory, size_t bytes) const = 0;  ///< to zeros
  /// From device memory to other device memory. Throws `OutOfMemory`.
  virtual void copy(std::byte* to, const std::byte* from, size_t bytes) const;

  /// Waits for what the device was asked before.
  virtual void wait() const = 0;

  /// Memory of the host that `download` fills without a detour, and that operations may write to: the host sees it once
  /// it has waited. Throws `OutOfMemory`, which names `what`.
  virtual std::byte* allocate_on_host(size_t bytes, std::string_view what) const;
  virtual void free_on_host(std::byte* memory, size_t bytes) const noexcept;

  /// The matrix in the form that the device multiplies with. Throws `OutOfMemory`.
  virtual std::unique_ptr<const PreparedMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) const = 0;

  /// Rows that a step is cut to: enough to make good use of the device, while activations stay small.
  virtual int64_t step_rows() const noexcept { return 512; }

  virtual std::unique_ptr<Executor> new_executor(const ExecutorOptions& options) const = 0;
};

/// The device of that name: "cpu", "cuda" or "cuda:N", or one that was added. Throws `Error` where there is none,
/// saying what is missing.
const Device& find_device(std::string_view name);
const Device& cpu_device() noexcept;

/// Adds a device for `find_device`; it stays for the rest of the process.
void add_device(std::unique_ptr<const Device> device);

/// An array in device memory.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  /// Contents are undefined. Throws `OutOfMemory`, which names `what`.
  DeviceArray(const Device& device, int64_t size, std::string_view what)
      : device_(&device), size_(size), data_(size == 0 ? nullptr : device.allocate(bytes(), what)) {}
  /// A copy of `values`.
  DeviceArray(const Device& device, std::span<const T> values, std::string_view what)
      : DeviceArray(device, std::ssize(values), what) {
    upload(values);
  }
  DeviceArray(DeviceArray&& other) noexcept { swap(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    DeviceArray(std::move(other)).swap(*this);
    return *this;
  }
  ~DeviceArray() {
    if (data_ != nullptr) device_->free(data_, bytes());
  }

  /// Device memory; null if empty.
  T* data() const noexcept { return reinterpret_cast<T*>(data_); }
  int64_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  size_t bytes() const noexcept { return static_cast<size_t>(size_) * sizeof(T); }

  /// Writes `values` to the elements from `first` on.
  void upload(std::span<const T> values, int64_t first = 0) {
    assert(first >= 0 && first + std::ssize(values) <= size_);
    if (!values.empty()) device_->upload(data_ + static_cast<size_t>(first) * sizeof(T), std::as_bytes(values));
  }
  /// Reads the elements from `first` on.
  void download(std::span<T> values, int64_t first = 0) const {
    assert(first >= 0 && first + std::ssize(values) <= size_);
    if (!values.empty()) {
      device_->download(std::as_writable_bytes(values), data_ + static_cast<size_t>(first) * sizeof(T));
    }
  }
  void clear() {
    if (data_ != nullptr) device_->clear(data_, bytes());
  }
  /// From an array of the same device and size.
  void copy_from(const DeviceArray& other) {
    assert(other.size_ == size_ && other.device_ == device_);
    if (data_ != nullptr) device_->copy(data_, other.data_, bytes());
  }

 private:
  void swap(DeviceArray& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
  }

  const Device* device_ = nullptr;
  int64_t size_ = 0;
  std::byte* data_ = nullptr;
};

/// An array in the memory of `Device::allocate_on_host`.
template <class T>
class HostArray {
 public:
  HostArray() = default;
  HostArray(const Device& device, int64_t size, std::string_view what)
      : device_(&device), size_(size), data_(size == 0 ? nullptr : device.allocate_on_host(bytes(), what)) {}
  HostArray(HostArray&& other) noexcept { swap(other); }
  HostArray& operator=(HostArray&& other) noexcept {
    HostArray(std::move(other)).swap(*this);
    return *this;
  }
  ~HostArray() {
    if (data_ != nullptr) device_->free_on_host(data_, bytes());
  }

  T* data() const noexcept { return reinterpret_cast<T*>(data_); }
  int64_t size() const noexcept { return size_; }
  size_t bytes() const noexcept { return static_cast<size_t>(size_) * sizeof(T); }

 private:
  void swap(HostArray& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
  }

  const Device* device_ = nullptr;
  int64_t size_ = 0;
  std::byte* data_ = nullptr;
};

}  // namespace hxq::kernels
