#include "hxq/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>

#include "hxq/error.h"

namespace hxq {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

/// A generation and where it is.
struct Task {
  Task(Scheduler::Id with_id, Generation of, Sequence* in)
      : id(with_id), generation(std::move(of)), sequence(in), is_given(in != nullptr) {}

  Scheduler::Id id;
  Generation generation;
  Sequence* sequence;  ///< null while it waits
  bool is_given;       ///< the sequence is the caller's
  std::exception_ptr error = {};
  std::optional<Clock::time_point> began = {};
  std::optional<Clock::time_point> decodes = {};  ///< since then

  bool ended() const noexcept { return error || generation.done(); }
  Scheduler::Progress progress() const {
    using Stage = Scheduler::Progress::Stage;
    const GenerateResult& result = generation.result();
    const Stage running = decodes ? Stage::decode : Stage::prefill;
    return {.id = id,
            .stage = ended()    ? Stage::done
                     : sequence ? running
                                : Stage::waiting,
            .prompt_tokens = std::ssize(result.prompt_tokens),
            .reused_tokens = result.reused_tokens,
            .run_tokens = sequence ? sequence->position() : 0,
            .new_tokens = std::ssize(result.tokens)};
  }
  /// Tokens that are still to be run.
  std::span<const int32_t> rest() const noexcept {
    return generation.tokens().subspan(static_cast<size_t>(sequence->position()));
  }
};

}  // namespace

struct Scheduler::Impl {
  Impl(const Model& of, const Limits& given) : model(of), limits(given), workspace(of.new_workspace()) {
    const int64_t least = std::min(limits.prefill_tokens, limits.prefill_tokens_beside_decode);
    if (limits.sequences < 1 || least < 0) {
      throw Error(
          fmt::format("{} sequences and {} prompt tokens at once: expected at least 1 and 0", limits.sequences, least));
    }
    if (limits.prefill_tokens == 0) limits.prefill_tokens = model.info().step_tokens;
    if (limits.prefill_tokens_beside_decode == 0) limits.prefill_tokens_beside_decode = limits.prefill_tokens;
  }

  Task* find(Id id) noexcept {
    const auto at = std::ranges::lower_bound(tasks, id, {}, &Task::id);
    return at == tasks.end() || at->id != id ? nullptr : &*at;
  }

  bool goes_on(Task& task);
  void admit();
  void release(Task& task);
  void forget(Id id);
  void plan();
  void advance(Task& task, std::span<float> logits, Clock::time_point now);

  const Model& model;
  Limits limits;
  Workspace workspace;
  Id last_id = 0;
  std::deque<Task> tasks;                        // in the order in which they came, ids ascending
  std::vector<std::unique_ptr<Sequence>> free;   // to be used again
  std::vector<std::unique_ptr<Sequence>> taken;  // by tasks

  // Of the step at hand.
  std::vector<int32_t> tokens;
  std::vector<Segment> segments;
  std::vector<Task*> running;  // by segment
};

/// Whether the task is to be run; ends it where it was asked to stop before its text began.
bool Scheduler::Impl::goes_on(Task& task) {
  try {
    if (!task.ended() && !task.decodes && task.generation.asked_to_stop()) task.generation.interrupt();
  } catch (...) {
    task.error = std::current_exception();
  }
  if (task.ended()) release(task);
  return !task.ended();
}

/// Gives sequences to those that wait, as far as there may be more and memory reaches.
void Scheduler::Impl::admit() {
  for (Task& task : tasks) {
    if (!goes_on(task) || task.sequence || std::ssize(taken) >= limits.sequences) continue;
    if (free.empty()) {
      try {
        free.push_back(std::make_unique<Sequence>(model.new_sequence()));
      } catch (const OutOfMemory&) {
        if (taken.empty()) throw;
        return;  // the others go on, and leave theirs to it
      }
    }
    taken.reserve(taken.size() + 1);
    taken.push_back(std::move(free.back()));
    free.pop_back();
    task.sequence = taken.back().get();
    task.sequence->reset();
  }
}

void Scheduler::Impl::release(Task& task) {
  if (task.is_given || !task.sequence) return;
  const auto at = std::ranges::find(taken, task.sequence, &std::unique_ptr<Sequence>::get);
  free.push_back(std::move(*at));
  taken.erase(at);
  task.sequence = nullptr;
}

void Scheduler::Impl::forget(Id id) {
  if (Task* task = find(id)) release(*task);
  std::erase_if(tasks, [&](const Task& task) { return task.id == id; });
}

/// The segments of the next step: a token of everyone who decodes, then prompts as far as the budget goes.
void Scheduler::Impl::plan() {
  tokens.clear();
  segments.clear();
  running.clear();
  const auto add = [&](Task& task, int64_t count, Phase phase) {
    const std::span<const int32_t> rest = task.rest();
    tokens.insert(tokens.end(), rest.begin(), rest.begin() + count);
    segments.push_back({.sequence = task.sequence,
                        .tokens = count,
                        .phase = phase,
                        .logits = count == std::ssize(rest) ? Logits::last : Logits::none,
                        .end = std::ssize(task.generation.tokens())});
    running.push_back(&task);
  };
  for (Task& task : tasks) {
    if (task.sequence && !task.ended() && task.decodes) add(task, 1, Phase::decode);
  }
  // Rows to decode count, so that a step of both is no longer than one of prompts alone.
  const int64_t rows = segments.empty() ? limits.prefill_tokens : limits.prefill_tokens_beside_decode;
  int64_t budget = std::max<int64_t>(rows - std::ssize(segments), 1);
  for (Task& task : tasks) {
    if (!task.sequence || task.ended() || task.decodes || budget == 0) continue;
    const int64_t count = std::min(std::ssize(task.rest()), budget);
    if (!task.began) task.began = Clock::now();
    add(task, count, Phase::prefill);
    budget -= count;
  }
}

/// Takes the logits of the last token of a task.
void Scheduler::Impl::advance(Task& task, std::span<float> of_last, Clock::time_point now) {
  GenerateResult& result = task.generation.result();
  if (!task.decodes) {
    task.decodes = now;
    result.prompt_seconds = seconds_between(*task.began, now);
  }
  try {
    task.generation.next(of_last);
  } catch (...) {
    task.error = std::current_exception();
  }
  result.decode_seconds = seconds_between(*task.decodes, Clock::now());
}

Scheduler::Scheduler(const Model& model) : Scheduler(model, Limits{}) {}
Scheduler::Scheduler(const Model& model, const Limits& limits) : impl_(std::make_unique<Impl>(model, limits)) {}
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&&) noexcept = default;
Scheduler::~Scheduler() = default;

Scheduler::Id Scheduler::add(Generation generation) {
  impl_->tasks.emplace_back(++impl_->last_id, std::move(generation), nullptr);
  return impl_->last_id;
}

Scheduler::Id Scheduler::add(Generation generation, Sequence& sequence) {
  if (sequence.position() >= std::ssize(generation.tokens())) throw Error("no token is left to run");
  generation.result().reused_tokens = sequence.position();
  impl_->tasks.emplace_back(++impl_->last_id, std::move(generation), &sequence);
  return impl_->last_id;
}

bool Scheduler::step() {
  Impl& my = *impl_;
  my.admit();
  my.plan();
  if (my.segments.empty()) return false;
  const auto vocab = static_cast<size_t>(my.model.info().vocab_size);
  const auto rows = static_cast<size_t>(std::ranges::count(my.segments, Logits::last, &Segment::logits));
  std::span<float> rest = my.workspace.logits(rows * vocab);
  my.model.forward(my.tokens, my.segments, my.workspace, rest);
  const auto now = Clock::now();
  for (size_t s = 0; s < my.segments.size(); ++s) {
    if (my.segments[s].logits != Logits::last) continue;
    my.advance(*my.running[s], rest.first(vocab), now);
    rest = rest.subspan(vocab);
    if (my.running[s]->ended()) my.release(*my.running[s]);
  }
  return true;
}

void Scheduler::cancel(Id id) { impl_->forget(id); }

std::vector<Scheduler::Progress> Scheduler::progress() const {
  std::vector<Progress> all;
  for (const Task& task : impl_->tasks) all.push_back(task.progress());
  return all;
}

const GenerateResult* Scheduler::result_so_far(Id id) const {
  const Task* task = impl_->find(id);
  return task && !task->ended() ? &task->generation.result() : nullptr;
}

std::optional<GenerateResult> Scheduler::take(Id id) {
  Task* task = impl_->find(id);
  if (!task || !task->ended()) return std::nullopt;
  const std::exception_ptr error = task->error;
  GenerateResult result = std::move(task->generation.result());
  impl_->forget(id);
  if (error) std::rethrow_exception(error);
  return result;
}

}  // namespace hxq
