#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace hxq {

/// Cuts a piece of device memory into arrays, in the order in which they are asked for. Over no memory it measures: the
/// addresses then lead nowhere, and what was asked for is counted. So one piece of code states a layout and its size.
/// Copies cut the same memory again from where they are, as parts of a step that follow each other do; each thread of a
/// team has a copy of its own.
class WorkMemory {
 public:
  explicit WorkMemory(std::byte* memory) noexcept : memory_(memory) {}

  /// Counts into `bytes`, which must outlive it and its copies, how far any of them got.
  static WorkMemory measuring(size_t& bytes) noexcept {
    WorkMemory memory(reinterpret_cast<std::byte*>(uintptr_t{64}));  // null pointers may not be offset
    memory.measured_ = &bytes;
    return memory;
  }

  /// `count` elements, aligned to 64 bytes; contents are undefined.
  template <class T>
  T* take(int64_t count) noexcept {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_) + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    if (measured_ != nullptr) *measured_ = std::max(*measured_, used_);
    return reinterpret_cast<T*>(at);
  }

 private:
  std::byte* memory_;
  size_t used_ = 0;
  size_t* measured_ = nullptr;
};

}  // namespace hxq
