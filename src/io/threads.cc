#include "io/threads.h"

#include <pthread.h>
#include <sched.h>

#include <cmath>
#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <vector>

#include "io/cpu_quota.h"
#include "io/spin.h"

namespace hxq {
namespace {

using Body = void (*)(int rank, int size, void* argument);

/// What a thread spins before it sleeps: longer than what lies between two decode steps of a small model.
constexpr std::chrono::microseconds kSpin(50);

/// Returns when `value` is no longer `old`.
template <class T>
void wait_for_change(const std::atomic<T>& value, T old) noexcept {
  if (spin_until([&] { return value.load(std::memory_order_acquire) != old; }, kSpin)) return;
  value.wait(old, std::memory_order_acquire);
}

/// Threads that work for one call at a time. They and their crew live until the process ends.
class Crew {
 public:
  void run(int threads, Body body, void* argument) noexcept {
    const int helpers = grow(threads - 1);
    body_ = body;
    argument_ = argument;
    size_ = helpers + 1;
    working_.store(helpers, std::memory_order_relaxed);
    for (int i = 0; i < helpers; ++i) {
      helpers_[static_cast<size_t>(i)]->call.fetch_add(1);
      helpers_[static_cast<size_t>(i)]->call.notify_one();
    }
    body(0, helpers + 1, argument);
    for (int left = working_.load(std::memory_order_acquire); left > 0;
         left = working_.load(std::memory_order_acquire)) {
      wait_for_change(working_, left);
    }
  }

 private:
  struct alignas(64) Helper {
    std::atomic<int> call = 0;
  };

  /// Starts threads until there are `wanted`, or no more can be had; returns how many of those wanted there are.
  int grow(int wanted) noexcept {
    try {
      while (static_cast<int>(helpers_.size()) < wanted) {
        helpers_.reserve(helpers_.size() + 1);
        auto helper = std::make_unique<Helper>();
        const int rank = static_cast<int>(helpers_.size()) + 1;
        std::thread([this, rank, own = helper.get()] { work(rank, *own); }).detach();
        helpers_.push_back(std::move(helper));
      }
    } catch (const std::exception&) {
      // No memory or no thread: those there are do the work.
    }
    return std::min(wanted, static_cast<int>(helpers_.size()));
  }

  void work(int rank, Helper& own) noexcept {
    for (int calls = 0;;) {
      wait_for_change(own.call, calls);
      calls = own.call.load(std::memory_order_relaxed);
      body_(rank, size_, argument_);
      if (working_.fetch_sub(1) == 1) working_.notify_one();
    }
  }

  std::vector<std::unique_ptr<Helper>> helpers_;
  Body body_ = nullptr;
  void* argument_ = nullptr;
  int size_ = 0;
  alignas(64) std::atomic<int> working_ = 0;
};

/// Crews that no call uses: as many as there were calls at the same time.
class Crews {
 public:
  Crew* take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      idle_.reserve(++made_);  // so that `give_back` cannot fail
      return new Crew;
    }
    Crew* crew = idle_.back();
    idle_.pop_back();
    return crew;
  }

  void give_back(Crew* crew) noexcept {
    const std::lock_guard lock(mutex_);
    idle_.push_back(crew);
  }

 private:
  std::mutex mutex_;
  size_t made_ = 0;
  std::vector<Crew*> idle_;
};

/// Never destroyed: threads may still wait in it when the process ends.
Crews& crews() {
  alignas(Crews) static std::byte memory[sizeof(Crews)];
  static Crews* const made = [] {
    Crews* first = new (memory) Crews;
    // A forked child has none of the threads.
    pthread_atfork(nullptr, nullptr, [] { new (memory) Crews; });
    return first;
  }();
  return *made;
}

int processors() {
  // The set is as long as the kernel's own.
  for (int count = CPU_SETSIZE; count <= 1 << 20; count *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(count));
    if (!set) break;
    const size_t size = CPU_ALLOC_SIZE(static_cast<size_t>(count));
    const bool known = sched_getaffinity(0, size, set) == 0;
    const int found = known ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (known) return std::max(1, found);
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

void detail::run_threads(int threads, Body body, void* argument) noexcept {
  Crew* crew = nullptr;
  try {
    if (threads > 1) crew = crews().take();
  } catch (const std::exception&) {
    // Without memory for a crew, the calling thread does it all.
  }
  if (!crew) return body(0, 1, argument);
  crew->run(threads, body, argument);
  crews().give_back(crew);
}

int available_threads() {
  const int most = processors();
  const std::optional<double> quota = cpu_quota();
  return quota ? std::clamp(static_cast<int>(std::ceil(*quota)), 1, most) : most;
}

}  // namespace hxq
