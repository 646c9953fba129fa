#pragma once

#include <cstddef>

namespace hxq::kernels {

/// Memory of the CPU device, aligned to 64 bytes. Arrays that a step goes through as a whole, states above all, lie in
/// pages of 2 MB where the system has such: a page of 4 KB is looked up anew each step once they are many. Arrays of a
/// size that is common for states share such pages; an array is given the place of another of its size that was freed.
/// Safe to call from several threads.

/// Null if there is none.
std::byte* allocate_cpu_memory(size_t bytes) noexcept;
void free_cpu_memory(std::byte* memory, size_t bytes) noexcept;

/// Bytes that shared pages take at present, for tests.
size_t shared_page_bytes() noexcept;

}  // namespace hxq::kernels
