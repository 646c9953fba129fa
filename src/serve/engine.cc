#include "serve/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "hxq/error.h"
#include "serve/api_error.h"

namespace hxq::serve {

using Stage = Scheduler::Progress::Stage;

struct Engine::Job {
  Ticket ticket;
  Scheduler::Id id;
  size_t sent_text = 0;    ///< bytes
  size_t sent_tokens = 0;  ///< whose log probabilities were sent
};

Engine::Engine(const Model& model, const Scheduler::Limits& limits, Deliver deliver)
    : deliver_(std::move(deliver)), scheduler_(model, limits) {
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

Engine::Ticket Engine::submit(Generation generation, int64_t shared_tokens) {
  const std::lock_guard lock(mutex_);
  const Ticket ticket = ++last_ticket_;
  submitted_.push_back({ticket, std::move(generation), shared_tokens});
  ++status_.open;
  wake_.notify_one();
  return ticket;
}

void Engine::cancel(Ticket ticket) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(ticket);
  wake_.notify_one();
}

void Engine::end_all(const std::string& fault) {
  const std::lock_guard lock(mutex_);
  end_all_ = fault;
  wake_.notify_one();
}

Engine::Status Engine::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void Engine::run() {
  for (bool busy = false;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock,
                 [&] { return busy || stop_ || !submitted_.empty() || !cancelled_.empty() || !end_all_.empty(); });
      if (stop_) return;
    }
    apply_commands();
    const auto start = std::chrono::steady_clock::now();
    busy = step();
    std::vector<Delivery> deliveries = collect();
    publish(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), busy);
    if (!deliveries.empty()) deliver_(std::move(deliveries));
  }
}

void Engine::apply_commands() {
  std::vector<Submitted> submitted;
  std::vector<Ticket> cancelled;
  std::string fault;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    fault.swap(end_all_);
  }
  for (auto& [ticket, generation, shared_tokens] : submitted) {
    const Scheduler::Id id = scheduler_.add(std::move(generation), shared_tokens);
    jobs_.push_back(std::make_unique<Job>(Job{.ticket = ticket, .id = id}));
  }
  for (const Ticket ticket : cancelled) {
    std::erase_if(jobs_, [&](const auto& job) {
      if (job->ticket != ticket) return false;
      scheduler_.cancel(job->id);
      ++count_.cancelled;
      return true;
    });
  }
  if (fault.empty()) return;
  for (const auto& job : jobs_) fail(*job, fault, true);
  jobs_.clear();
}

/// A step of the scheduler; false if there is nothing to run. A step that fails has changed nothing: of those that run,
/// the generation that came last is given up, and the others go on.
bool Engine::step() {
  while (true) {
    try {
      return scheduler_.step();
    } catch (const std::exception& error) {
      if (jobs_.empty()) return false;
      const std::vector<Scheduler::Progress> all = scheduler_.progress();
      const auto last = std::find_if(all.rbegin(), all.rend(), [](const Scheduler::Progress& progress) {
        return progress.stage == Stage::prefill || progress.stage == Stage::decode;
      });
      const auto job = last == all.rend() ? jobs_.begin() : find_job(last->id);
      fail(**job, without_file(error), dynamic_cast<const OutOfMemory*>(&error) != nullptr);
      jobs_.erase(job);
    }
  }
}

/// Ids ascend, as jobs came.
std::vector<std::unique_ptr<Engine::Job>>::iterator Engine::find_job(Scheduler::Id id) {
  return std::ranges::lower_bound(jobs_, id, {}, [](const auto& job) { return job->id; });
}

void Engine::fail(Job& job, const std::string& fault, bool is_temporary) {
  scheduler_.cancel(job.id);
  ++count_.failed;
  outbox_.push_back(
      {job.ticket,
       {.ending = Ending{.reason = StopReason::interrupted, .fault = fault, .is_temporary = is_temporary}}});
}

/// What came since the last call: text that is certain, and the tokens that begin in it.
Update Engine::update_of(Job& job) {
  Update update;
  std::optional<GenerateResult> final_result;
  const GenerateResult* result = scheduler_.result_so_far(job.id);
  if (!result) {
    try {
      final_result = scheduler_.take(job.id);
    } catch (const std::exception& error) {
      update.ending = Ending{.reason = StopReason::interrupted, .fault = without_file(error)};
      return update;
    }
    result = &*final_result;
  }
  update.text = result->text.substr(job.sent_text);
  job.sent_text = result->text.size();
  // At its end a text has what its last tokens left unfinished, but neither the end-of-text token nor what was cut.
  const bool whole = final_result && result->stop_reason != StopReason::stop;
  size_t last = result->logprobs.size();
  if (last > 0 && final_result && result->stop_reason == StopReason::eos) --last;
  for (; job.sent_tokens < last; ++job.sent_tokens) {
    const size_t offset = result->text_offsets[job.sent_tokens];
    if (!whole && offset >= result->text.size()) break;
    update.tokens.push_back({.token = result->tokens[job.sent_tokens],
                             .text_offset = offset,
                             .logprobs = result->logprobs[job.sent_tokens]});
  }
  if (final_result) {
    update.ending = Ending{.reason = result->stop_reason,
                           .prompt_tokens = std::ssize(result->prompt_tokens),
                           .reused_tokens = result->reused_tokens,
                           .new_tokens = std::ssize(result->tokens)};
  }
  return update;
}

std::vector<Engine::Delivery> Engine::collect() {
  std::erase_if(jobs_, [&](const auto& job) {
    Update update = update_of(*job);
    const bool ended = update.ending.has_value();
    if (ended && update.ending->fault.empty()) {
      ++count_.completed;
      count_.prompt_tokens += update.ending->prompt_tokens;
      count_.reused_tokens += update.ending->reused_tokens;
      count_.new_tokens += update.ending->new_tokens;
    } else if (ended) {
      ++count_.failed;
    }
    if (ended || !update.text.empty() || !update.tokens.empty()) outbox_.push_back({job->ticket, std::move(update)});
    return ended;
  });
  return std::exchange(outbox_, {});
}

void Engine::publish(double seconds, bool stepped) {
  if (stepped) {
    ++count_.steps;
    count_.step_seconds += seconds;
    for (size_t i = 0; i < kStepSeconds.size(); ++i) count_.steps_within[i] += seconds <= kStepSeconds[i];
  }
  count_.generations = scheduler_.progress();
  for (Scheduler::Progress& progress : count_.generations) {
    progress.id = (*find_job(progress.id))->ticket;
  }
  const std::lock_guard lock(mutex_);
  count_.open = std::ssize(jobs_) + std::ssize(submitted_);
  status_ = count_;
}

}  // namespace hxq::serve
