// Steps: what many sequences need of a model at once, cut into pieces that fit the work memory.

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <ctime>
#include <new>

#include "hxq/error.h"
#include "kernels/most_likely.h"
#include "layers/projection.h"
#include "model/model_parts.h"

namespace hxq {
namespace {

/// A segment, or the part of it that one step runs.
struct Piece {
  Sequence::Parts* sequence;
  Phase phase;
  int64_t token;         ///< of the call: its first
  int64_t tokens;        ///< how many
  int64_t wanted;        ///< rows whose outputs are asked for, the last ones of the piece
  bool only_token;       ///< of these only the likeliest token is asked for, not the outputs
  int64_t first_wanted;  ///< of the call's outputs, or of its likeliest tokens: the row of the first of these
};

/// Of the pieces of a call: those to decode come first, and those that outputs are asked of lie between those that only
/// tokens are asked of, so that a step's outputs are adjacent rows.
int rank_of(const Piece& piece) noexcept {
  if (piece.phase == Phase::decode) return piece.only_token ? 0 : 1;
  return piece.only_token ? 3 : 2;
}

struct Step {
  StepShape shape = {};
  int64_t first_output = 0;  ///< of the wanted rows: the first whose outputs are asked for
  int64_t outputs = 0;       ///< how many
  std::vector<Piece> pieces = {};
};

int64_t wanted_rows(const Segment& segment) noexcept {
  if (segment.logits == Logits::none) return 0;
  return segment.logits == Logits::all ? segment.tokens : std::min<int64_t>(segment.tokens, 1);
}

void add(Step& step, const Piece& piece) {
  const bool decode = piece.phase == Phase::decode;
  if (piece.wanted > 0 && piece.only_token) step.shape.most_likely = true;
  if (piece.wanted > 0 && !piece.only_token) {
    if (step.outputs == 0) step.first_output = step.shape.wanted;
    step.outputs += piece.wanted;
  }
  step.shape.rows += piece.tokens;
  step.shape.decode_rows += decode ? piece.tokens : 0;
  step.shape.segments += 1;
  step.shape.wanted += piece.wanted;
  step.shape.wanted_decode += decode ? piece.wanted : 0;
  step.pieces.push_back(piece);
}

/// Cuts the pieces, by their rank, into steps of at most `step_rows`.
std::vector<Step> plan_steps(std::span<const Piece> pieces, int64_t step_rows, bool hidden) {
  std::vector<Step> steps;
  for (const Piece& all : pieces) {
    const int64_t first_wanted = all.tokens - all.wanted;
    for (int64_t done = 0; done < all.tokens;) {
      if (steps.empty() || steps.back().shape.rows == step_rows) steps.push_back({.shape = {.hidden = hidden}});
      Piece piece = all;
      piece.token += done;
      piece.tokens = std::min(all.tokens - done, step_rows - steps.back().shape.rows);
      done += piece.tokens;
      const int64_t end = all.sequence->position + done;
      if (end > kernels::Batch::kFewPositions) steps.back().shape.few_positions = false;
      if (all.phase == Phase::prefill) steps.back().shape.prefill_positions += end;
      piece.wanted = std::clamp<int64_t>(done - first_wanted, 0, piece.tokens);
      piece.first_wanted += std::max<int64_t>(done - piece.wanted - first_wanted, 0);
      add(steps.back(), piece);
    }
  }
  for (Step& step : steps) {
    auto& positions = step.shape.prefill_positions;
    if (positions > 0) positions = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(positions)));
  }
  return steps;
}

/// Whether the outputs of the step are consecutive rows of the call's.
bool in_order(const Step& step) noexcept {
  int64_t next = -1;
  for (const Piece& piece : step.pieces) {
    if (piece.wanted == 0 || piece.only_token) continue;
    if (next >= 0 && piece.first_wanted != next) return false;
    next = piece.first_wanted + piece.wanted;
  }
  return true;
}

/// Writes the step's inputs.
void fill(const Step& step, std::span<const int32_t> tokens, const StepInputs& inputs) {
  int64_t row = 0, wanted = 0;
  for (size_t s = 0; s < step.pieces.size(); ++s) {
    const Piece& piece = step.pieces[s];
    inputs.segment[s] = {static_cast<int32_t>(row), static_cast<int32_t>(row + piece.tokens)};
    piece.sequence->put_arrays(static_cast<int64_t>(s), step.shape.segments, inputs.state);
    for (int64_t t = 0; t < piece.tokens; ++t, ++row) {
      inputs.token[row] = tokens[static_cast<size_t>(piece.token + t)];
      inputs.position[row] = static_cast<int32_t>(piece.sequence->position + t);
      if (t >= piece.tokens - piece.wanted) inputs.wanted[wanted++] = static_cast<int32_t>(row);
    }
  }
}

std::vector<float> outputs_on_host(size_t count) {
  try {
    return std::vector<float>(count);
  } catch (const std::bad_alloc&) {
    throw OutOfMemory("the outputs of a step", count * sizeof(float));
  }
}

/// What a call is to give.
struct Results {
  std::span<float> outputs;
  std::span<int32_t> most_likely;
};

/// Runs a step that memory was reserved for, and advances its sequences. staging: as many outputs as the step has,
/// where they lie apart in the call's.
void run(const Step& step, std::span<const int32_t> tokens, Workspace::Parts& workspace, const Results& results,
         std::span<float> staging) {
  fill(step, tokens, workspace.inputs_on_host(step.shape));
  const auto width = static_cast<size_t>(workspace.model->output_size(step.shape.hidden));
  const auto place = [&](const Piece& piece) {
    return results.outputs.data() + static_cast<size_t>(piece.first_wanted) * width;
  };
  const auto begin =
      std::ranges::find_if(step.pieces, [](const Piece& piece) { return piece.wanted > 0 && !piece.only_token; });
  const bool direct = begin != step.pieces.end() && in_order(step);
  float* to = direct ? place(*begin) : staging.data();
  workspace.run(step.shape, to, step.first_output, step.outputs);
  const int32_t* token = workspace.most_likely.data();  // of the wanted rows, if the shape asks for them
  for (const Piece& piece : step.pieces) {
    if (piece.only_token) {
      std::copy_n(token, piece.wanted, results.most_likely.begin() + piece.first_wanted);
    } else {
      const auto size = static_cast<size_t>(piece.wanted) * width;
      if (!direct) std::copy_n(to, size, place(piece));
      to += size;
    }
    if (step.shape.most_likely) token += piece.wanted;
    piece.sequence->position += piece.tokens;
  }
}

void check_tokens(std::span<const int32_t> tokens, std::span<const Segment> segments, int64_t vocab) {
  int64_t count = 0;
  for (const Segment& segment : segments) {
    if (segment.tokens < 0 || segment.tokens > std::ssize(tokens)) {
      throw Error(
          fmt::format("a segment of {} tokens: expected 0 to the {} of the call", segment.tokens, tokens.size()));
    }
    count += segment.tokens;
  }
  if (count != std::ssize(tokens))
    throw Error(fmt::format("{} tokens, expected {} of the segments", tokens.size(), count));
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab) throw Error(fmt::format("token {} is outside the vocabulary of {}", token, vocab));
  }
}

void check_sequences(std::span<const Segment> segments, const ModelInfo& info) {
  std::vector<const Sequence*> sequences;
  for (const Segment& segment : segments) {
    const int64_t seen = segment.sequence->position();
    if (info.context_length > 0 && seen + segment.tokens > info.context_length) {
      throw Error(
          fmt::format("{} tokens after {}: the model's context holds {}", segment.tokens, seen, info.context_length));
    }
    if (segment.end != 0 && segment.end < seen + segment.tokens) {
      throw Error(fmt::format("{} tokens after {} end beyond the sequence's {}", segment.tokens, seen, segment.end));
    }
    sequences.push_back(segment.sequence);
  }
  std::ranges::sort(sequences);
  if (std::ranges::adjacent_find(sequences) != sequences.end()) throw Error("a sequence comes twice in one call");
}

void check_results(std::span<const Segment> segments, int64_t width, bool hidden, const Results& results) {
  int64_t rows = 0, only_tokens = 0;
  for (const Segment& segment : segments) {
    (segment.logits == Logits::most_likely ? only_tokens : rows) += wanted_rows(segment);
    if (hidden && segment.logits == Logits::most_likely) throw Error("hidden states have no most likely token");
  }
  if (std::ssize(results.outputs) != rows * width) {
    throw Error(fmt::format("room for {} {}, expected {} x {}", results.outputs.size(),
                            hidden ? "numbers of hidden states" : "logits", rows, width));
  }
  if (std::ssize(results.most_likely) != only_tokens) {
    throw Error(fmt::format("room for {} most likely tokens, expected {}", results.most_likely.size(), only_tokens));
  }
}

}  // namespace

Sequence::Parts::Parts(const Model::Parts& of) : model(&of) {
  for (const auto& block : of.blocks) blocks.push_back(block->new_state());
}

void Sequence::Parts::put_arrays(int64_t segment, int64_t segments, void** addresses) const noexcept {
  void* arrays[Block::kMostStateArrays];
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto count = static_cast<size_t>(model->blocks[i]->state_arrays());
    blocks[i]->put_arrays({arrays, count});
    for (size_t a = 0; a < count; ++a, addresses += segments) addresses[segment] = arrays[a];
  }
}

Sequence::Sequence(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Sequence::Sequence(Sequence&&) noexcept = default;
Sequence& Sequence::operator=(Sequence&&) noexcept = default;
Sequence::~Sequence() = default;

int64_t Sequence::position() const noexcept { return parts_->position; }

void Sequence::reset() {
  for (const auto& block : parts_->blocks) block->reset();
  parts_->position = 0;
}

void Sequence::copy_from(const Sequence& other) {
  if (&other == this) return;
  if (other.parts_->model != parts_->model) throw Error("the sequence to copy is another model's");
  try {
    for (size_t i = 0; i < parts_->blocks.size(); ++i) {
      parts_->blocks[i]->copy_from(*other.parts_->blocks[i], other.position());
    }
  } catch (...) {
    reset();
    throw;
  }
  parts_->position = other.position();
}

int64_t Sequence::bytes() const noexcept {
  int64_t sum = 0;
  for (const auto& block : parts_->blocks) sum += block->bytes();
  return sum;
}

StateValues Sequence::read(int64_t block, StateKind kind) const {
  if (block < 0 || block >= std::ssize(parts_->blocks)) {
    throw Error(fmt::format("block {}: the model has {}", block, parts_->blocks.size()));
  }
  return parts_->blocks[static_cast<size_t>(block)]->read(kind, parts_->position);
}

Workspace::Workspace(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Workspace::Workspace(Workspace&&) noexcept = default;
Workspace& Workspace::operator=(Workspace&&) noexcept = default;
Workspace::~Workspace() = default;

std::span<float> Workspace::logits(size_t count) {
  kernels::HostArray<float>& array = parts_->logits_of_callers;
  const auto size = static_cast<int64_t>(count);
  if (array.size() < size) {
    array = {};  // first, so that both are never held at once
    array = {*parts_->model->state_options.device, size, "logits"};
  }
  return {array.data(), count};
}

Workspace::Parts::Parts(const Model::Parts& of)
    : model(&of),
      executor(of.state_options.device->new_executor(
          {.threads = of.info.threads, .target = of.info.target, .precision = of.info.precision})),
      step_threads(of.info.threads) {
  for (const Weight& matrix : of.matrices) {
    if (matrix) matrix->finish();
  }
}

const Workspace::Parts::Reserved* Workspace::Parts::find_reserved(const StepShape& shape) const noexcept {
  const auto found = std::ranges::find(reserved, shape, &Reserved::shape);
  return found == reserved.end() ? nullptr : &*found;
}

void Workspace::Parts::reserve(const StepShape& shape) {
  if (find_reserved(shape) != nullptr) return;
  const kernels::Device& device = *model->state_options.device;
  const auto grow = [this](auto& array, const kernels::Device& where, int64_t size, std::string_view what) {
    if (array.size() >= size) return;
    reserved.clear();  // their steps have addresses of the old array
    array = {};        // first, so that both are never held at once
    array = {where, size, what};
  };
  size_t input_bytes = 0, work_bytes = 0;
  const StepInputs measured(WorkMemory::measuring(input_bytes), shape, model->state_arrays);
  const auto measure = [&](const kernels::Context& context) {
    WorkMemory nothing = WorkMemory::measuring(work_bytes);
    WorkMemory nowhere = nothing;
    model->run(shape, measured, nothing, {.outputs = nowhere.take<float>(0), .most_likely = nowhere.take<int32_t>(0)},
               context);
  };
  try {
    executor->reserve(kernels::DeviceCode::of(measure));
  } catch (...) {
    reserved.clear();  // what the executor had for them is gone
    throw;
  }
  grow(host_inputs, kernels::cpu_device(), static_cast<int64_t>(input_bytes), "the inputs of a step");
  grow(inputs, device, static_cast<int64_t>(input_bytes), "the inputs of a step");
  grow(work, device, static_cast<int64_t>(work_bytes), fmt::format("the work memory of {} tokens", shape.rows));
  if (shape.most_likely) grow(most_likely, device, shape.wanted, "the tokens of a step");
  if (!device.is_host() || shape.most_likely) {
    grow(outputs, device, shape.wanted * model->output_size(shape.hidden),
         fmt::format("the outputs of {} tokens", shape.wanted));
  }
  constexpr size_t kMostReserved = 32;
  if (reserved.size() == kMostReserved) reserved.erase(reserved.begin());
  reserved.push_back({.shape = shape, .input_bytes = input_bytes, .key = next_key++});
}

StepInputs Workspace::Parts::inputs_on_host(const StepShape& shape) noexcept {
  return {WorkMemory(host_inputs.data()), shape, model->state_arrays};
}

void Workspace::Parts::run(const StepShape& shape, float* to, int64_t first, int64_t rows) {
  const Reserved& known = *find_reserved(shape);
  inputs.upload({host_inputs.data(), known.input_bytes});
  const StepInputs on_device(WorkMemory(inputs.data()), shape, model->state_arrays);
  const bool direct = model->state_options.device->is_host() && !shape.most_likely;
  const bool adapts = shape.rows == shape.decode_rows && model->adapt_threads;
  if (adapts && shape.rows != timed_rows) {  // steps of different sizes say nothing of each other
    step_threads = StepThreads(model->info.threads);
    timed_rows = shape.rows;
  }
  const auto start = std::chrono::steady_clock::now();
  const std::clock_t busy = adapts ? std::clock() : 0;
  executor->run(adapts ? step_threads.threads() : model->info.threads,
                kernels::DeviceCode::of([&](const kernels::Context& context) {
                  model->run(shape, on_device, WorkMemory(work.data()),
                             {.outputs = direct ? to : outputs.data(), .most_likely = most_likely.data()}, context);
                }),
                direct ? 0 : known.key);  // on the host the outputs may go elsewhere each time
  if (adapts) {
    step_threads.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
                      static_cast<double>(std::clock() - busy) / CLOCKS_PER_SEC);
  }
  if (direct) return;
  if (shape.most_likely) model->state_options.device->wait();
  const int64_t width = model->output_size(shape.hidden);
  outputs.download({to, static_cast<size_t>(rows * width)}, first * width);
}

void Model::Parts::run(const StepShape& shape, const StepInputs& inputs, WorkMemory work, const StepResults& results,
                       const kernels::Context& context) const noexcept {
  const kernels::Batch batch{.rows = shape.rows,
                             .decode_rows = shape.decode_rows,
                             .segments = shape.segments,
                             .segment = inputs.segment,
                             .position = inputs.position,
                             .few_positions = shape.few_positions,
                             .prefill_positions = shape.prefill_positions};
  const int64_t hidden = desc.hidden_size;
  float* x = work.take<float>(shape.rows * hidden);
  float* embedding = desc.blocks_read_embedding ? work.take<float>(shape.rows * hidden) : nullptr;
  kernels::gather_rows(matrix(desc.embedding), inputs.token, shape.rows, x, context);
  if (embedding) {
    kernels::copy_rows(
        {.from = x, .from_stride = hidden, .to = embedding, .to_stride = hidden, .rows = shape.rows, .cols = hidden},
        context);
  }
  StateArrays state(inputs.state, shape.segments);
  for (const auto& block : blocks) {
    block->forward({.x = x, .embedding = embedding, .batch = batch, .state = state, .work = work}, context);
    state = state.from(block->state_arrays());
  }
  if (shape.wanted == 0) return;
  float* last = x;  // [wanted, hidden]
  if (shape.wanted < shape.rows) {
    last = work.take<float>(shape.wanted * hidden);
    kernels::copy_rows({.from = x,
                        .from_stride = hidden,
                        .row = inputs.wanted,
                        .to = last,
                        .to_stride = hidden,
                        .rows = shape.wanted,
                        .cols = hidden},
                       context);
  }
  if (shape.hidden) {
    kernels::rms_norm((*final_norm)(last, results.outputs, shape.wanted), context);
    return;
  }
  const kernels::Batch of_logits{.rows = shape.wanted, .decode_rows = shape.wanted_decode};
  JointProjections to_logits((*final_norm)(last, last, shape.wanted), last, hidden);
  to_logits.add({.weight = &matrix(head), .args = {.y = results.outputs, .y_stride = desc.vocab_size}});
  to_logits.run(of_logits, context);
  if (!shape.most_likely) return;
  kernels::most_likely(
      {.logits = results.outputs, .rows = shape.wanted, .vocabulary = desc.vocab_size, .token = results.most_likely},
      context);
}

Sequence Model::new_sequence() const { return Sequence(std::make_unique<Sequence::Parts>(*parts_)); }

Workspace Model::new_workspace() const { return Workspace(std::make_unique<Workspace::Parts>(*parts_)); }

void Model::run(std::span<const int32_t> tokens, std::span<const Segment> segments, Workspace& workspace,
                std::span<float> outputs, std::span<int32_t> most_likely, bool hidden) const {
  if (!workspace.parts_ || workspace.parts_->model != parts_.get()) {
    throw Error("the workspace is not one of this model's");
  }
  for (const Segment& segment : segments) {
    const bool own = segment.sequence && segment.sequence->parts_ && segment.sequence->parts_->model == parts_.get();
    if (!own) throw Error("a sequence is not one of this model's");
  }
  const int64_t width = parts_->output_size(hidden);
  check_tokens(tokens, segments, info().vocab_size);
  check_sequences(segments, info());
  const Results results{outputs, most_likely};
  check_results(segments, width, hidden, results);

  std::vector<Piece> pieces;
  int64_t token = 0, output = 0, only_token = 0;
  for (const Segment& segment : segments) {
    int64_t& first = segment.logits == Logits::most_likely ? only_token : output;
    pieces.push_back({.sequence = segment.sequence->parts_.get(),
                      .phase = segment.phase,
                      .token = token,
                      .tokens = segment.tokens,
                      .wanted = wanted_rows(segment),
                      .only_token = segment.logits == Logits::most_likely,
                      .first_wanted = first});
    token += segment.tokens;
    first += pieces.back().wanted;
  }
  std::ranges::stable_sort(pieces, {}, rank_of);
  const std::vector<Step> steps = plan_steps(pieces, info().step_tokens, hidden);
  for (const Segment& segment : segments) {
    const int64_t end = segment.sequence->position() + segment.tokens;
    for (const auto& state : segment.sequence->parts_->blocks)
      state->reserve(end, segment.end == 0 ? end : segment.end);
  }
  size_t apart = 0;  // numbers of a step's outputs that lie apart in the call's
  for (const Step& step : steps) {
    workspace.parts_->reserve(step.shape);
    if (!in_order(step)) apart = std::max(apart, static_cast<size_t>(step.outputs * width));
  }
  std::vector<float> staging = outputs_on_host(apart);
  for (const Step& step : steps) {
    workspace.parts_->reserve(step.shape);  // nothing more is taken: the largest step has been asked for
    hxq::run(step, tokens, *workspace.parts_, results, staging);
  }
}

void Model::forward(std::span<const int32_t> tokens, std::span<const Segment> segments, Workspace& workspace,
                    std::span<float> logits, std::span<int32_t> most_likely) const {
  run(tokens, segments, workspace, logits, most_likely, false);
}

void Model::hidden_states(std::span<const int32_t> tokens, std::span<const Segment> segments, Workspace& workspace,
                          std::span<float> states) const {
  run(tokens, segments, workspace, states, {}, true);
}

void Model::forward(std::span<const int32_t> tokens, Sequence& sequence, Phase phase, Logits wanted,
                    Workspace& workspace, std::span<float> logits) const {
  const Segment segment{.sequence = &sequence, .tokens = std::ssize(tokens), .phase = phase, .logits = wanted};
  forward(tokens, {&segment, 1}, workspace, logits);
}

}  // namespace hxq
