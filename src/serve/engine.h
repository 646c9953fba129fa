#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "hxq/embedder.h"
#include "hxq/scheduler.h"
#include "serve/update.h"

namespace hxq::serve {

/// The compute thread: it owns the scheduler and the embedder and runs their steps while there is anything to run. All
/// functions may be called from any thread, and none waits for a step.
class Engine {
 public:
  using Ticket = uint64_t;  ///< of a generation, or of a text whose embedding is wanted
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
    std::vector<Embedder::Progress> embeddings;    ///< running; `id` as above
    int64_t open = 0;                              ///< what was submitted and has not ended
    int64_t completed = 0, cancelled = 0, failed = 0;
    int64_t prompt_tokens = 0, reused_tokens = 0, new_tokens = 0;
    int64_t steps = 0;
    double step_seconds = 0;                                     ///< in all
    std::array<int64_t, kStepSeconds.size()> steps_within = {};  ///< of at most so many seconds
  };

  /// The model must outlive it. Throws `Error` for limits out of range, `OutOfMemory`.
  Engine(const Model& model, const Scheduler::Limits& limits, Pooling pooling, Deliver deliver);
  /// Forgets what is running; nothing is delivered any more.
  ~Engine();

  /// Begins a generation; see `Scheduler::add`.
  Ticket submit(Generation generation, int64_t shared_tokens = 0);
  /// The same for a text's embedding; see `Embedder::add`.
  Ticket submit(std::vector<int32_t> text);
  /// Forgets what was submitted before the next step; nothing more of it comes.
  void cancel(Ticket ticket);
  /// Ends everything with a fault.
  void end_all(const std::string& fault);

  Status status() const;

  /// What was submitted up to this ticket and has not ended by now has failed: there was no memory to tell of it. To be
  /// asked now and then; 0: nothing.
  Ticket lost() const noexcept { return lost_; }

 private:
  struct Job;
  struct Submitted {
    std::optional<Generation> generation;  ///< empty: an embedding is wanted
    int64_t shared_tokens = 0;
    std::vector<int32_t> text = {};
    Ticket ticket = 0;
  };
  Ticket put(Submitted submitted);
  void run();
  bool turn();
  void lose_all() noexcept;
  void forget(const Job& job) noexcept;
  void apply_commands();
  bool is_cancelled(Ticket ticket) const;
  bool step(Scheduler::Prompts prompts);
  bool embed(int64_t tokens);
  void end(std::vector<std::unique_ptr<Job>>::iterator job, const std::exception& error);
  std::vector<Delivery> collect();
  Update update_of(Job& job);
  Update embedding_of(const Job& job);
  void tell_of_end(Ticket ticket, Ending ending);
  void publish(double seconds, bool stepped);

  Deliver deliver_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  // Behind the mutex: what others ask for, and what they see.
  Ticket last_ticket_ = 0;
  std::vector<Submitted> submitted_;
  std::map<Ticket, bool> open_;  // what has not ended: whether it is cancelled
  bool any_cancelled_ = false;
  std::string end_all_;
  bool stop_ = false;
  Status status_;

  std::atomic<Ticket> lost_ = 0;
  // Of the compute thread alone.
  Scheduler scheduler_;
  Embedder embedder_;
  int64_t embedded_tokens_;                 // of a turn without texts, at most
  bool prompts_wait_ = false;               // in the next turn, in which texts are embedded
  Ticket taken_ = 0;                        // the last that was submitted and is seen here
  std::vector<std::unique_ptr<Job>> jobs_;  // in the order in which they came
  std::vector<Delivery> outbox_;
  Status count_;
  std::thread thread_;
};

}  // namespace hxq::serve
