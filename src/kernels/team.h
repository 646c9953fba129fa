#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace hxq {

/// A half-open range of work items.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

/// Where the threads of a team wait for each other: briefly by spinning, since most waits are short, then, where there
/// are more threads than processors, by giving turns, then asleep, so that nobody holds up the one it waits for.
class Barrier {
 public:
  /// Returns when `threads` threads have called it.
  void wait(int threads) noexcept;

 private:
  std::atomic<int> arrived_ = 0;
  std::atomic<uint32_t> generation_ = 0;
};

/// The threads that run one forward pass together. Every thread executes the same layer code (SPMD) and takes its
/// share of each operation by rank; `barrier` separates operations that exchange data.
class Team {
 public:
  /// `barrier` is the same object for the whole team; a team of one needs none.
  Team(int rank, int size, Barrier* barrier = nullptr) noexcept : rank_(rank), size_(size), barrier_(barrier) {}

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return size_; }

  /// This thread's share of [0, count), cut at multiples of `granule`. The shares are contiguous and in rank order.
  Range share(int64_t count, int64_t granule = 1) const noexcept {
    const int64_t blocks = (count + granule - 1) / granule;
    const auto cut = [&](int64_t part) {
      const int64_t at = blocks * part / size_ * granule;
      return at < count ? at : count;
    };
    return {cut(rank_), cut(rank_ + 1)};
  }

  /// Waits until every thread of the team is here. No-op for a team of one.
  void barrier() const noexcept {
    if (size_ > 1) barrier_->wait(size_);
  }

 private:
  int rank_;
  int size_;
  Barrier* barrier_;
};

/// Threads to use when the caller asks for 0: the processors that this process may use.
int default_thread_count();

namespace detail {
void run_team(int threads, void (*body)(const Team&, void*), void* argument);
}

/// Runs `body(team)` on `threads` threads at once, fewer where the system gives no more, and returns when all are done.
/// `body` must not throw.
template <class Body>
void run_team(int threads, Body&& body) {
  detail::run_team(
      threads, [](const Team& team, void* argument) { (*static_cast<std::remove_reference_t<Body>*>(argument))(team); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace hxq
