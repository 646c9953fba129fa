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
  bool embeds;
  uint64_t id = 0;         ///< of the scheduler's or the embedder's
  size_t sent_text = 0;    ///< bytes
  size_t sent_tokens = 0;  ///< whose log probabilities were sent
  bool has_ended = false;
};

namespace {

Ending ending_by(const std::exception& error) {
  return {
      .reason = StopReason::interrupted, .fault = without_file(error), .is_temporary = is_for_want_of_memory(error)};
}

}  // namespace

Engine::Engine(const Model& model, const Scheduler::Limits& limits, Pooling pooling, Deliver deliver)
    : deliver_(std::move(deliver)),
      scheduler_(model, limits),
      embedder_(model, pooling, limits.sequences),
      embedded_tokens_(limits.prefill_tokens > 0 ? limits.prefill_tokens : model.info().step_tokens) {
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
  return put(Submitted{.generation = std::move(generation), .shared_tokens = shared_tokens});
}

Engine::Ticket Engine::submit(std::vector<int32_t> text) {
  return put(Submitted{.generation = std::nullopt, .text = std::move(text)});
}

Engine::Ticket Engine::put(Submitted submitted) {
  const std::lock_guard lock(mutex_);
  const Ticket ticket = ++last_ticket_;
  const auto [entry, is_new] = open_.emplace(ticket, false);
  try {
    submitted.ticket = ticket;
    submitted_.push_back(std::move(submitted));
  } catch (...) {
    open_.erase(entry);
    throw;
  }
  wake_.notify_one();
  return ticket;
}

void Engine::cancel(Ticket ticket) {
  const std::lock_guard lock(mutex_);
  const auto entry = open_.find(ticket);
  if (entry == open_.end()) return;
  entry->second = any_cancelled_ = true;
  wake_.notify_one();
}

void Engine::end_all(const std::string& fault) {
  const std::lock_guard lock(mutex_);
  end_all_ = fault;
  wake_.notify_one();
}

Engine::Status Engine::status() const {
  const std::lock_guard lock(mutex_);
  Status status = status_;
  status.open = std::ssize(open_);
  return status;
}

void Engine::run() {
  for (bool busy = false;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return busy || stop_ || !submitted_.empty() || any_cancelled_ || !end_all_.empty(); });
      if (stop_) return;
    }
    try {
      busy = turn();
    } catch (const std::exception&) {
      lose_all();
      busy = false;
    }
  }
}

/// What others asked for, a step, and what it has brought. Whether there may be more to run. A failure of one text ends
/// it alone; what is thrown is not to be told of for want of memory. Texts that are embedded get what prompts leave of
/// the tokens that may run beside texts; if that is nothing, prompts wait a turn.
bool Engine::turn() {
  apply_commands();
  const auto start = std::chrono::steady_clock::now();
  const bool prompts_wait = std::exchange(prompts_wait_, false);
  const bool has_texts = step(prompts_wait ? Scheduler::Prompts::wait : Scheduler::Prompts::run);
  const bool stepped = embed(has_texts ? scheduler_.prefill_tokens_left() : embedded_tokens_) || has_texts;
  std::vector<Delivery> deliveries = collect();
  publish(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), stepped);
  if (!deliveries.empty()) deliver_(std::move(deliveries));
  return stepped || prompts_wait;
}

/// Ends everything without taking memory.
void Engine::lose_all() noexcept {
  for (const auto& job : jobs_) forget(*job);
  jobs_.clear();
  outbox_.clear();
  const std::lock_guard lock(mutex_);
  const auto behind = open_.upper_bound(taken_);
  count_.failed += std::distance(open_.begin(), behind);
  open_.erase(open_.begin(), behind);
  status_.failed = count_.failed;
  status_.generations.clear();
  status_.embeddings.clear();
  lost_ = taken_;
}

void Engine::forget(const Job& job) noexcept {
  if (job.embeds) {
    embedder_.cancel(job.id);
  } else {
    scheduler_.cancel(job.id);
  }
}

void Engine::apply_commands() {
  std::vector<Submitted> submitted;
  std::string fault;
  bool any_cancelled = false;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    fault.swap(end_all_);
    any_cancelled = std::exchange(any_cancelled_, false);
    if (!submitted.empty()) taken_ = submitted.back().ticket;
  }
  jobs_.reserve(jobs_.size() + submitted.size());
  for (auto& [generation, shared_tokens, text, ticket] : submitted) {
    try {
      auto job = std::make_unique<Job>(Job{.ticket = ticket, .embeds = !generation});
      job->id = generation ? scheduler_.add(std::move(*generation), shared_tokens) : embedder_.add(std::move(text));
      jobs_.push_back(std::move(job));
    } catch (const std::exception& error) {
      tell_of_end(ticket, ending_by(error));
    }
  }
  if (any_cancelled) {
    std::erase_if(jobs_, [&](const auto& job) {
      if (!is_cancelled(job->ticket)) return false;
      forget(*job);
      ++count_.cancelled;
      return true;
    });
  }
  if (fault.empty()) return;
  for (const auto& job : jobs_) {
    forget(*job);
    tell_of_end(job->ticket, {.reason = StopReason::interrupted, .fault = fault, .is_temporary = true});
  }
  jobs_.clear();
}

bool Engine::is_cancelled(Ticket ticket) const {
  const std::lock_guard lock(mutex_);
  return open_.at(ticket);
}

/// A step of the scheduler; false if there is nothing to run. A step that fails has changed nothing: of those that run,
/// the generation that came last is given up, and the others go on.
bool Engine::step(Scheduler::Prompts prompts) {
  while (true) {
    try {
      return scheduler_.step(prompts);
    } catch (const std::exception& error) {
      const auto is_text = [](const auto& job) { return !job->embeds; };
      const auto first = std::ranges::find_if(jobs_, is_text);
      if (first == jobs_.end()) return false;
      const std::vector<Scheduler::Progress> all = scheduler_.progress();
      const auto last = std::find_if(all.rbegin(), all.rend(), [](const Scheduler::Progress& progress) {
        return progress.stage == Stage::prefill || progress.stage == Stage::decode;
      });
      const auto is_last = [&](const auto& job) { return is_text(job) && job->id == last->id; };
      end(last == all.rend() ? first : std::ranges::find_if(jobs_, is_last), error);
    }
  }
}

/// A step of the embedder of so many tokens at most; false if there is nothing to run. Where it fails, the text that
/// came first is given up.
bool Engine::embed(int64_t tokens) {
  while (true) {
    const auto first = std::ranges::find_if(jobs_, &Job::embeds, [](const auto& job) -> const Job& { return *job; });
    if (first == jobs_.end()) return false;
    if (tokens < 1) {
      prompts_wait_ = true;
      return false;
    }
    try {
      return embedder_.step(tokens, scheduler_.workspace());
    } catch (const std::exception& error) {
      end(first, error);
    }
  }
}

void Engine::end(std::vector<std::unique_ptr<Job>>::iterator job, const std::exception& error) {
  forget(**job);
  tell_of_end((*job)->ticket, ending_by(error));
  jobs_.erase(job);
}

void Engine::tell_of_end(Ticket ticket, Ending fault) {
  outbox_.push_back({ticket, {.ending = std::move(fault)}});
  ++count_.failed;
}

/// What came since the last call: text that is certain, and the tokens that begin in it. Throws what has ended the
/// generation.
Update Engine::update_of(Job& job) {
  Update update;
  std::optional<GenerateResult> final_result;
  const GenerateResult* result = scheduler_.result_so_far(job.id);
  if (!result) {
    final_result = scheduler_.take(job.id);
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

/// The embedding, once the text was run. Throws what has ended it.
Update Engine::embedding_of(const Job& job) {
  Update update;
  const int64_t tokens = embedder_.tokens(job.id);
  if (std::optional<std::vector<float>> vector = embedder_.take(job.id)) {
    update.embedding = std::move(*vector);
    update.ending = Ending{.prompt_tokens = tokens};
  }
  return update;
}

std::vector<Engine::Delivery> Engine::collect() {
  outbox_.reserve(outbox_.size() + jobs_.size());
  for (const auto& job : jobs_) {
    Update update;
    try {
      update = job->embeds ? embedding_of(*job) : update_of(*job);
    } catch (const std::exception& error) {
      forget(*job);
      update = {.ending = ending_by(error)};
    }
    job->has_ended = update.ending.has_value();
    if (job->has_ended && update.ending->fault.empty()) {
      ++count_.completed;
      count_.prompt_tokens += update.ending->prompt_tokens;
      count_.reused_tokens += update.ending->reused_tokens;
      count_.new_tokens += update.ending->new_tokens;
    } else if (job->has_ended) {
      ++count_.failed;
    }
    if (job->has_ended || !update.text.empty() || !update.tokens.empty()) {
      outbox_.push_back({job->ticket, std::move(update)});
    }
  }
  std::erase_if(jobs_, [](const auto& job) { return job->has_ended; });
  return std::exchange(outbox_, {});
}

void Engine::publish(double seconds, bool stepped) {
  if (stepped) {
    ++count_.steps;
    count_.step_seconds += seconds;
    for (size_t i = 0; i < kStepSeconds.size(); ++i) count_.steps_within[i] += seconds <= kStepSeconds[i];
  }
  count_.generations = scheduler_.progress();
  count_.embeddings = embedder_.running();
  const auto put_tickets = [&](auto& all, bool embeds) {
    auto job = jobs_.begin();  // of the same order
    for (auto& progress : all) {
      while ((*job)->embeds != embeds || (*job)->id != progress.id) ++job;
      progress.id = (*job)->ticket;
    }
  };
  put_tickets(count_.generations, false);
  put_tickets(count_.embeddings, true);
  const std::lock_guard lock(mutex_);
  status_ = count_;
  if (open_.size() == jobs_.size() + submitted_.size()) return;
  const auto by_ticket = [](const auto& job) { return job->ticket; };
  std::erase_if(open_, [&](const auto& entry) {
    return entry.first <= taken_ && !std::ranges::binary_search(jobs_, entry.first, {}, by_ticket);
  });
}

}  // namespace hxq::serve
