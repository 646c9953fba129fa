#include "kernels/team.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "io/spin.h"
#include "io/threads.h"

namespace hxq {

namespace {

/// Longer than threads with equal work drift apart. A thread that sleeps is late when it is woken, and then the others
/// wait for it: too short a spin makes one sleep follow the other, step after step.
constexpr std::chrono::microseconds kSpin(500);
/// Where there are more threads than processors, or a long spin was in vain: whoever is waited for may be on the same
/// processor, where it cannot run meanwhile.
constexpr std::chrono::microseconds kShortSpin(5);

/// Turns that a thread gives to the others where there are more of them than processors, before it sleeps: sleeping and
/// being woken takes longer, and each of the others waits for whoever wakes it.
constexpr int kTurns = 64;

template <class Done>
bool give_turns_until(Done done) noexcept {
  for (int i = 0; i < kTurns; ++i) {
    if (done()) return true;
    std::this_thread::yield();
  }
  return done();
}

/// Waits of this thread that spin shortly after a long spin in vain, and how many of them are left. A long spin in vain
/// doubles their number; any spin that is not in vain halves it and what is left of it. So long spins cost little where
/// all are in vain, and are back soon where none is.
constexpr int kMostShortWaits = 256;
thread_local int short_waits = 0, short_waits_left = 0;

}  // namespace

void Barrier::wait(int threads) noexcept {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    // In one order with the count of those asleep: by release alone, notify_all might not see one that saw the old
    // value.
    generation_.store(generation + 1, std::memory_order_seq_cst);
    generation_.notify_all();
    return;
  }
  static const int processors = available_threads();
  const bool is_crowded = threads > processors;
  const auto is_over = [&] { return generation_.load(std::memory_order_acquire) != generation; };
  const bool can_spin = !is_crowded && short_waits_left == 0;
  if (spin_until(is_over, can_spin ? kSpin : kShortSpin)) {
    short_waits /= 2;
    short_waits_left /= 2;
    return;
  }
  if (can_spin) {
    short_waits = std::clamp(2 * short_waits, 2, kMostShortWaits);
    short_waits_left = short_waits;
  } else if (short_waits_left > 0) {
    --short_waits_left;
  }
  if (is_crowded && give_turns_until(is_over)) return;
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
