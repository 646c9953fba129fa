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
/// Where threads are held up, as by others on the same processor, which a spin holds up in turn.
constexpr std::chrono::microseconds kShortSpin(5);
/// A sleep that lasts longer tells that they are: more than it takes to be woken, less than others run at a time.
constexpr std::chrono::microseconds kHeldUp(1500);

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

/// How few of this thread's waits were long lately: long spins need kTrusted.
constexpr int kMostTrust = 32, kTrusted = 16;
thread_local int trust = kMostTrust;

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
  const bool can_spin = !is_crowded && trust >= kTrusted;  // more threads need what a spin would take
  const auto is_over = [&] { return generation_.load(std::memory_order_acquire) != generation; };
  bool is_long = false;
  if (!spin_until(is_over, can_spin ? kSpin : kShortSpin) && !(is_crowded && give_turns_until(is_over))) {
    const auto asleep = std::chrono::steady_clock::now();
    generation_.wait(generation, std::memory_order_acquire);
    is_long = std::chrono::steady_clock::now() - asleep > kHeldUp;
  }
  trust = is_long ? std::max(trust - 2, 0) : std::min(trust + 1, kMostTrust);
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
