#pragma once

#include <chrono>

namespace hxq {

/// Tells the processor that a loop waits.
inline void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Returns true as soon as `done()` does, false if it did not for about that long. By the clock: processors pause for
/// 10 to 50 ns.
template <class Done>
bool spin_until(Done done, std::chrono::microseconds longest) noexcept {
  using Clock = std::chrono::steady_clock;
  constexpr int kPausesAtOnce = 16;
  Clock::time_point end{};
  while (true) {
    for (int i = 0; i < kPausesAtOnce; ++i) {
      if (done()) return true;
      pause();
    }
    const Clock::time_point now = Clock::now();
    if (end == Clock::time_point{}) end = now + longest;
    if (now >= end) return false;
  }
}

}  // namespace hxq
