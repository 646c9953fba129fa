#include "kernels/team.h"

#include "io/threads.h"

namespace hxq {

namespace {

/// Some tens of microseconds: more than threads with equal work drift apart, less than a wake-up is worth.
constexpr int kSpins = 1000;

void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void Barrier::wait(int threads) noexcept {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    generation_.notify_all();
    return;
  }
  for (int spin = 0; spin < kSpins; ++spin) {
    if (generation_.load(std::memory_order_acquire) != generation) return;
    pause();
  }
  generation_.wait(generation, std::memory_order_acquire);
}

int default_thread_count() { return available_threads(); }

void detail::run_team(int threads, void (*body)(const Team&, void*), void* argument) {
  if (threads == 1) {
    body(Team(0, 1), argument);
    return;
  }
  Barrier barrier;
  hxq::run_threads(threads, [&](int rank, int size) { body(Team(rank, size, &barrier), argument); });
}

}  // namespace hxq
