#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <type_traits>

namespace hxq {

/// The processors that this process may use: those it may run on, fewer where a control group (a container's limit)
/// grants it less time than they have. At least 1.
int available_threads();

namespace detail {
void run_threads(int threads, void (*body)(int rank, int size, void*), void* argument) noexcept;
}

/// Runs `body(rank, size)` on `threads` threads at once, the calling one with rank 0 among them, and returns when all
/// are done. Where the system gives no more threads, `size` is the number there are, at least 1. `body` must not throw.
/// The threads are kept for the next call: they wait for it a moment, then sleep.
template <class Body>
void run_threads(int threads, Body&& body) noexcept {
  detail::run_threads(
      threads,
      [](int rank, int size, void* argument) { (*static_cast<std::remove_reference_t<Body>*>(argument))(rank, size); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

/// Calls `work(i)` for every i in [0, count), on up to `threads` threads. Throws what one of the calls threw.
template <class Work>
void parallel_for(int threads, int count, Work&& work) {
  std::atomic<bool> failed = false;
  std::exception_ptr fault;
  run_threads(std::min(threads, count), [&](int rank, int size) {
    try {
      for (int i = rank; i < count; i += size) work(i);
    } catch (...) {
      if (!failed.exchange(true)) fault = std::current_exception();
    }
  });
  if (fault) std::rethrow_exception(fault);
}

}  // namespace hxq
