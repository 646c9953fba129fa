#include "hxq/embedder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "hxq/error.h"
#include "hxq/generate.h"
#include "model/memory_reaches.h"

namespace hxq {
namespace {

struct Task {
  int64_t rest() const noexcept { return std::ssize(tokens) - run; }

  Embedder::Id id;
  std::vector<int32_t> tokens;
  std::unique_ptr<Sequence> sequence = {};  ///< null before and after it runs
  int64_t run = 0;                          ///< of the tokens
  std::vector<double> sum = {};             ///< [hidden_size]: of the hidden states that are pooled
};

}  // namespace

struct Embedder::Impl {
  Impl(const Model& of, Pooling with, int64_t most) : model(of), pooling(with), sequences(most) {
    if (sequences < 1) throw Error(fmt::format("{} sequences at once: expected at least 1", sequences));
  }

  std::deque<Task>::iterator find(Id id) noexcept {
    const auto at = std::ranges::lower_bound(tasks, id, {}, &Task::id);
    return at == tasks.end() || at->id != id ? tasks.end() : at;
  }
  void forget(std::deque<Task>::iterator task) {
    tasks.erase(task);
    if (tasks.empty()) free.clear();
  }

  bool admit(Task& task);
  void plan(int64_t budget);
  std::vector<float> vector_of(const Task& task) const;

  const Model& model;
  Pooling pooling;
  int64_t sequences;
  Id last_id = 0;
  std::deque<Task> tasks;                       // in the order in which they came, ids ascending
  std::vector<std::unique_ptr<Sequence>> free;  // to be used again

  // Of the step at hand.
  std::vector<int32_t> tokens;
  std::vector<Segment> segments;
  std::vector<Task*> running;  // by segment
};

/// Gives the task a sequence; false if there is no memory for one and the step has others.
bool Embedder::Impl::admit(Task& task) {
  if (task.sequence) return true;
  const auto take_memory = [&] {
    free.reserve(static_cast<size_t>(sequences));  // so that all can be given back at any time
    if (free.empty()) free.push_back(std::make_unique<Sequence>(model.new_sequence()));
    task.sum.assign(static_cast<size_t>(model.info().hidden_size), 0);
  };
  if (segments.empty()) {
    take_memory();
  } else if (!memory_reaches(take_memory)) {
    return false;
  }
  task.sequence = std::move(free.back());
  free.pop_back();
  task.sequence->reset();
  return true;
}

void Embedder::Impl::plan(int64_t budget) {
  tokens.clear();
  segments.clear();
  running.clear();
  for (Task& task : tasks) {
    if (budget <= 0 || std::ssize(segments) == sequences) return;
    if (task.rest() == 0) continue;
    if (!admit(task)) return;
    const int64_t count = std::min(task.rest(), budget);
    const Logits if_last = count == task.rest() ? Logits::last : Logits::none;
    tokens.insert(tokens.end(), task.tokens.begin() + task.run, task.tokens.begin() + task.run + count);
    segments.push_back({.sequence = task.sequence.get(),
                        .tokens = count,
                        .phase = Phase::prefill,
                        .logits = pooling == Pooling::mean ? Logits::all : if_last,
                        .end = std::ssize(task.tokens)});
    running.push_back(&task);
    budget -= count;
  }
}

std::vector<float> Embedder::Impl::vector_of(const Task& task) const {
  double squares = 0;
  for (const double value : task.sum) squares += value * value;
  const double length = std::sqrt(squares);
  if (!(length > 0) || !std::isfinite(length)) {
    throw Error(fmt::format("the text's hidden states have no direction: their sum has length {}", length));
  }
  std::vector<float> vector;
  for (const double value : task.sum) vector.push_back(static_cast<float>(value / length));
  return vector;
}

Embedder::Embedder(const Model& model, Pooling pooling, int64_t sequences)
    : impl_(std::make_unique<Impl>(model, pooling, sequences)) {}
Embedder::Embedder(Embedder&&) noexcept = default;
Embedder& Embedder::operator=(Embedder&&) noexcept = default;
Embedder::~Embedder() = default;

Embedder::Id Embedder::add(std::vector<int32_t> tokens) {
  check_prompt_length(impl_->model.info(), std::ssize(tokens));
  impl_->tasks.push_back({.id = ++impl_->last_id, .tokens = std::move(tokens)});
  return impl_->last_id;
}

int64_t Embedder::tokens(Id id) const noexcept { return std::ssize(impl_->find(id)->tokens); }

std::vector<Embedder::Progress> Embedder::running() const {
  std::vector<Progress> all;
  for (const Task& task : impl_->tasks) {
    if (task.sequence) all.push_back({.id = task.id, .tokens = std::ssize(task.tokens), .run_tokens = task.run});
  }
  return all;
}

bool Embedder::step(int64_t tokens, Workspace& workspace) {
  Impl& my = *impl_;
  my.plan(tokens);
  if (my.segments.empty()) return false;
  const auto hidden = static_cast<size_t>(my.model.info().hidden_size);
  size_t rows = 0;
  for (const Segment& segment : my.segments) {
    if (segment.logits != Logits::none) rows += segment.logits == Logits::all ? static_cast<size_t>(segment.tokens) : 1;
  }
  const std::span<float> states = workspace.logits(rows * hidden);
  my.model.hidden_states(my.tokens, my.segments, workspace, states);
  const float* state = states.data();
  for (size_t s = 0; s < my.segments.size(); ++s) {
    const Segment& segment = my.segments[s];
    Task& task = *my.running[s];
    const int64_t pooled = segment.logits == Logits::all ? segment.tokens : segment.logits == Logits::last ? 1 : 0;
    for (int64_t row = 0; row < pooled; ++row, state += hidden) {
      for (size_t i = 0; i < hidden; ++i) task.sum[i] += static_cast<double>(state[i]);
    }
    task.run += segment.tokens;
    if (task.rest() == 0) my.free.push_back(std::move(task.sequence));
  }
  return true;
}

std::optional<std::vector<float>> Embedder::take(Id id) {
  const auto task = impl_->find(id);
  if (task == impl_->tasks.end() || task->rest() > 0) return std::nullopt;
  std::vector<float> vector = impl_->vector_of(*task);
  impl_->forget(task);
  return vector;
}

void Embedder::cancel(Id id) {
  const auto task = impl_->find(id);
  if (task == impl_->tasks.end()) return;
  if (task->sequence) impl_->free.push_back(std::move(task->sequence));
  impl_->forget(task);
}

}  // namespace hxq
