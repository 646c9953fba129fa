#include "hxq/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>

#include "hxq/error.h"
#include "model/memory_reaches.h"
#include "model/prefix_cache.h"

namespace hxq {
namespace {

using Clock = std::chrono::steady_clock;

/// Tokens of a prompt after which what the model remembers is kept: a step of the CPU.
constexpr int64_t kKeptEvery = 512;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

/// A generation and where it is.
struct Task {
  Task(Scheduler::Id with_id, Generation of, Sequence* in, int64_t shared)
      : id(with_id), generation(std::move(of)), sequence(in), is_given(in != nullptr), shared_tokens(shared) {}

  Scheduler::Id id;
  Generation generation;
  Sequence* sequence;     ///< null while it waits
  bool is_given;          ///< the sequence is the caller's
  int64_t shared_tokens;  ///< of the prompt, that others are likely to begin with
  std::exception_ptr error = {};
  std::optional<Clock::time_point> began = {};
  std::optional<Clock::time_point> decodes = {};  ///< since then

  bool ended() const noexcept { return error || generation.done(); }
  bool in_prefill() const noexcept { return sequence && !decodes && !ended(); }
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
  Impl(const Model& of, const Limits& given)
      : model(of), limits(given), workspace(of.new_workspace()), prefixes(of, given.prefix_bytes) {
    const int64_t least = std::min(limits.prefill_tokens, limits.prefill_tokens_beside_decode);
    if (limits.prefix_bytes < 0) throw Error(fmt::format("{} bytes for prefixes", limits.prefix_bytes));
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
  bool admit();
  bool waits_for_another(const Task& task) const;
  bool reuse(Task& task);
  int64_t next_kept(const Task& task) const noexcept;
  void release(Task& task);
  void forget(Id id);
  int64_t plan(Prompts prompts);
  bool keeps_prefixes_of(const Task& task) const noexcept;
  Logits wanted_of(const Task& task) const noexcept;
  void keep_prefix(const Task& task, std::span<const float> logits);
  template <class Outcome>
  void advance(Task& task, Outcome outcome, Clock::time_point now);

  const Model& model;
  Limits limits;
  Workspace workspace;
  PrefixCache prefixes;
  Id last_id = 0;
  std::deque<Task> tasks;                        // in the order in which they came, ids ascending
  std::vector<std::unique_ptr<Sequence>> free;   // to be used again
  std::vector<std::unique_ptr<Sequence>> taken;  // by tasks

  // Of the step at hand.
  std::vector<int32_t> tokens;
  std::vector<Segment> segments;
  std::vector<Task*> running;  // by segment
  std::vector<int32_t> most_likely;
  int64_t left = 0;  // of the budget, by the last that ran
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

/// Whether the task's prompt is being run for another: then it can soon go on from its end.
bool Scheduler::Impl::waits_for_another(const Task& task) const {
  return prefixes.is_enabled() && std::ranges::any_of(tasks, [&](const Task& other) {
           return other.in_prefill() && std::ranges::equal(other.generation.tokens(), task.generation.tokens());
         });
}

/// Lets the task go on from the longest beginning of its prompt that is kept. Whether that is all of it, so that its
/// first token was chosen.
bool Scheduler::Impl::reuse(Task& task) {
  const std::span<const int32_t> prompt = task.generation.tokens();
  const PrefixCache::Entry* entry = prefixes.find(prompt);
  if (!entry) return false;
  std::vector<float> logits;
  const bool is_copied = memory_reaches([&] {
    logits = entry->logits;
    task.sequence->copy_from(entry->sequence);
  });
  if (!is_copied) return false;  // it is run from its start
  task.generation.result().reused_tokens = task.sequence->position();
  if (entry->tokens.size() < prompt.size()) return false;
  task.began = Clock::now();
  advance(task, std::span(logits), *task.began);
  return true;
}

/// The position up to which the task's prompt is to be run before what the model remembers is kept.
int64_t Scheduler::Impl::next_kept(const Task& task) const noexcept {
  const int64_t position = task.sequence->position();
  const int64_t end = std::ssize(task.generation.tokens());
  if (!prefixes.is_enabled() || task.is_given) return end;
  int64_t next = std::min((position / kKeptEvery + 1) * kKeptEvery, end);
  if (task.shared_tokens > position) next = std::min(next, task.shared_tokens);
  return next;
}

/// Gives sequences to those that wait, as far as there may be more and memory reaches. Whether that brought anything
/// on.
bool Scheduler::Impl::admit() {
  bool brought_on = false;
  for (Task& task : tasks) {
    if (!goes_on(task) || task.sequence || std::ssize(taken) >= limits.sequences) continue;
    if (waits_for_another(task)) continue;
    if (free.empty()) {
      const auto take_memory = [&] {
        free.reserve(taken.size() + 1);  // so that all can be given back at any time
        free.push_back(std::make_unique<Sequence>(model.new_sequence()));
      };
      if (taken.empty()) {
        take_memory();
      } else if (!memory_reaches(take_memory)) {
        return brought_on;  // the others go on, and leave theirs to it
      }
    }
    taken.reserve(taken.size() + 1);
    taken.push_back(std::move(free.back()));
    free.pop_back();
    task.sequence = taken.back().get();
    task.sequence->reset();
    brought_on |= reuse(task);
    if (task.ended()) release(task);
  }
  return brought_on;
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

/// The segments of the next step: a token of everyone who decodes, then prompts, if they do not wait, as far as the
/// budget goes. What they leave of the budget beside decoding.
int64_t Scheduler::Impl::plan(Prompts prompts) {
  tokens.clear();
  segments.clear();
  running.clear();
  const auto add = [&](Task& task, int64_t count, Phase phase) {
    const std::span<const int32_t> rest = task.rest();
    tokens.insert(tokens.end(), rest.begin(), rest.begin() + count);
    segments.push_back({.sequence = task.sequence,
                        .tokens = count,
                        .phase = phase,
                        .logits = count == std::ssize(rest) ? wanted_of(task) : Logits::none,
                        .end = std::ssize(task.generation.tokens())});
    running.push_back(&task);
  };
  for (Task& task : tasks) {
    if (task.sequence && !task.ended() && task.decodes) add(task, 1, Phase::decode);
  }
  // Rows to decode count, so that a step of both is hardly longer than one of prompts alone, but never stop prompts.
  const int64_t rows = limits.prefill_tokens_beside_decode, decoded = std::ssize(segments);
  const int64_t beside = std::max({rows - decoded, rows / 4, int64_t{1}});
  if (prompts == Prompts::wait) return beside;
  int64_t budget = decoded == 0 ? limits.prefill_tokens : beside;
  for (Task& task : tasks) {
    if (!task.in_prefill() || budget == 0) continue;
    const int64_t count = std::min(next_kept(task) - task.sequence->position(), budget);
    if (!task.began) task.began = Clock::now();
    add(task, count, Phase::prefill);
    budget -= count;
  }
  return beside - (std::ssize(tokens) - decoded);
}

/// Whether beginnings of its prompt, which is still being run, are kept.
bool Scheduler::Impl::keeps_prefixes_of(const Task& task) const noexcept {
  return prefixes.is_enabled() && !task.is_given && !task.decodes;
}

/// What its next token is chosen by. Of a prompt that is kept logits are, since others may sample from its end.
Logits Scheduler::Impl::wanted_of(const Task& task) const noexcept {
  return task.generation.needs_logits() || keeps_prefixes_of(task) ? Logits::last : Logits::most_likely;
}

/// Keeps what the model remembers where the task's prompt was run up to a position that is worth it.
void Scheduler::Impl::keep_prefix(const Task& task, std::span<const float> logits) {
  if (!keeps_prefixes_of(task)) return;
  const int64_t position = task.sequence->position();
  if (position == task.shared_tokens || position % kKeptEvery == 0 || !logits.empty()) {
    prefixes.keep(task.generation.tokens(), *task.sequence, logits);
  }
}

/// Takes the logits of the last token of a task, or the likeliest token by them.
template <class Outcome>
void Scheduler::Impl::advance(Task& task, Outcome outcome, Clock::time_point now) {
  GenerateResult& result = task.generation.result();
  if (!task.decodes) {
    task.decodes = now;
    result.prompt_seconds = seconds_between(*task.began, now);
  }
  try {
    task.generation.next(outcome);
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

Scheduler::Id Scheduler::add(Generation generation, int64_t shared_tokens) {
  impl_->tasks.emplace_back(++impl_->last_id, std::move(generation), nullptr, shared_tokens);
  return impl_->last_id;
}

Scheduler::Id Scheduler::add(Generation generation, Sequence& sequence) {
  if (sequence.position() >= std::ssize(generation.tokens())) throw Error("no token is left to run");
  generation.result().reused_tokens = sequence.position();
  impl_->tasks.emplace_back(++impl_->last_id, std::move(generation), &sequence, 0);
  return impl_->last_id;
}

bool Scheduler::step(Prompts prompts) {
  Impl& my = *impl_;
  const bool brought_on = my.admit();
  const int64_t left = my.plan(prompts);
  if (my.segments.empty()) {
    my.left = left;
    return brought_on;
  }
  const auto vocab = static_cast<size_t>(my.model.info().vocab_size);
  const auto count = [&](Logits wanted) {
    return static_cast<size_t>(std::ranges::count(my.segments, wanted, &Segment::logits));
  };
  std::span<float> logits = my.workspace.logits(count(Logits::last) * vocab);
  my.most_likely.resize(count(Logits::most_likely));
  my.model.forward(my.tokens, my.segments, my.workspace, logits, my.most_likely);
  my.left = left;
  const auto now = Clock::now();
  auto most_likely = my.most_likely.begin();
  for (size_t s = 0; s < my.segments.size(); ++s) {
    Task& task = *my.running[s];
    const Logits wanted = my.segments[s].logits;
    const std::span<float> of_last = wanted == Logits::last ? logits.first(vocab) : std::span<float>();
    logits = logits.subspan(of_last.size());
    my.keep_prefix(task, of_last);  // before the logits are changed
    if (wanted == Logits::none) continue;
    wanted == Logits::last ? my.advance(task, of_last, now) : my.advance(task, *most_likely++, now);
    if (task.ended()) my.release(task);
  }
  return true;
}

int64_t Scheduler::prefill_tokens_left() const noexcept { return impl_->left; }

void Scheduler::cancel(Id id) { impl_->forget(id); }

Workspace& Scheduler::workspace() noexcept { return impl_->workspace; }

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
