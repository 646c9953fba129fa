#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "hxq/scheduler.h"
#include "serve/update.h"

namespace hxq::serve {

/// The compute thread: it owns the scheduler and runs its steps while there is anything to run. All functions may be
/// called from any thread, and none waits for a step.
class Engine {
 public:
  using Ticket = uint64_t;  ///< of a generation
  struct Delivery {
    Ticket ticket;
    Update update;
  };
  /// Gets what a step has brought, on the compute thread. May throw for want of memory.
  using Deliver = std::function<void(std::vector<Delivery>)>;

  /// Upper bounds of the durations that steps are counted by, in seconds.
  static constexpr std::array kStepSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0};

  /// What the compute thread has done since it began, and has before it.
  struct Status {
    std::vector<Scheduler::Progress> generations;  ///< running and waiting, `id` being the ticket
    int64_t open = 0;                              ///< generations that were submitted and have not ended
    int64_t completed = 0, cancelled = 0, failed = 0;
    int64_t prompt_tokens = 0, reused_tokens = 0, new_tokens = 0;
    int64_t steps = 0;
    double step_seconds = 0;                                     ///< in all
    std::array<int64_t, kStepSeconds.size()> steps_within = {};  ///< of at most so many seconds
  };

  /// The model must outlive it. Throws `Error` for limits out of range, `OutOfMemory`.
  Engine(const Model& model, const Scheduler::Limits& limits, Deliver deliver);
  /// Forgets what is running; nothing is delivered any more.
  ~Engine();

  /// Begins a generation; see `Scheduler::add`.
  Ticket submit(Generation generation, int64_t shared_tokens = 0);
  /// Forgets a generation before the next step; nothing more of it comes.
  void cancel(Ticket ticket);
  /// Ends all generations with a fault.
  void end_all(const std::string& fault);

  Status status() const;

  /// Generations up to this ticket that have not ended by now have failed: there was no memory to tell of them. To be
  /// asked now and then; 0: none.
  Ticket lost() const noexcept { return lost_; }

 private:
  struct Job;
  void run();
  bool turn();
  void lose_all() noexcept;
  void apply_commands();
  bool is_cancelled(Ticket ticket) const;
  bool step();
  std::vector<std::unique_ptr<Job>>::iterator find_job(Scheduler::Id id);
  std::vector<Delivery> collect();
  Update update_of(Job& job);
  void tell_of_end(Ticket ticket, Ending ending);
  void publish(double seconds, bool stepped);

  Deliver deliver_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Behind the mutex: what others ask for, and what they see.
  Ticket last_ticket_ = 0;
  struct Submitted {
    Ticket ticket;
    Generation generation;
    int64_t shared_tokens;
  };
  std::vector<Submitted> submitted_;
  std::map<Ticket, bool> open_;  // generations that have not ended: whether they are cancelled
  bool any_cancelled_ = false;
  std::string end_all_;
  bool stop_ = false;
  Status status_;

  std::atomic<Ticket> lost_ = 0;
  // Of the compute thread alone.
  Scheduler scheduler_;
  Ticket taken_ = 0;                        // the last that was submitted and is seen here
  std::vector<std::unique_ptr<Job>> jobs_;  // in the order in which they came
  std::vector<Delivery> outbox_;
  Status count_;
  std::thread thread_;
};

}  // namespace hxq::serve
