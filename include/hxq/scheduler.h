#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "hxq/generate.h"

namespace hxq {

/// One text that is being continued: which tokens are to be run, which one comes next, where it ends. It knows no model
/// but its facts: whoever runs the tokens hands it the logits.
class Generation {
 public:
  /// `tokenizer` must outlive it. Throws `Error` for options out of range and for no tokens, `ContextError` for a
  /// prompt that the context does not hold.
  Generation(const ModelInfo& model, const Tokenizer& tokenizer, std::vector<int32_t> prompt,
             const GenerateOptions& options, OnText on_text = {});
  Generation(Generation&&) noexcept;
  Generation& operator=(Generation&&) noexcept;
  ~Generation();

  /// Every token that is to be run, in order: the prompt, then what was chosen.
  std::span<const int32_t> tokens() const noexcept;

  /// Chooses the next token by the logits of the last of `tokens`, which it changes. Passes text on, and on what
  /// `on_text` throws.
  void next(std::span<float> logits);
  /// False where the likeliest token is all that it takes of them: greedy sampling without log probabilities.
  bool needs_logits() const noexcept;
  /// The same by what `Logits::most_likely` gives of them, where it needs no more.
  void next(int32_t most_likely);

  /// What `GenerateOptions::interrupted` says; false without it.
  bool asked_to_stop() const;

  /// Ends it as interrupted.
  void interrupt();

  /// No token is to be run any more.
  bool done() const noexcept;

  /// Final when it is done.
  const GenerateResult& result() const noexcept;
  GenerateResult& result() noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Runs many generations on one model, a step at a time. Each step decodes a token of every text whose prompt was run,
/// and runs what a budget allows of the prompts, first come first. Results are those of each generation alone, bit for
/// bit. One thread of control at a time; functions that a generation calls (`on_text`, `interrupted`) may not call it.
class Scheduler {
 public:
  struct Limits {
    int64_t sequences = 64;      ///< that are run at once; more wait
    int64_t prefill_tokens = 0;  ///< of prompts, in a step; 0: as many as the model's device computes at once
    /// The same in a step that also decodes, so that texts go on steadily beside long prompts; 0: `prefill_tokens`.
    /// Texts that are decoded count, but leave a quarter of it, and 1 at least.
    int64_t prefill_tokens_beside_decode = 0;
    /// Memory, in bytes, for what the model remembers after beginnings of prompts: prompts that begin with one of them
    /// go on from there. Kept are ends of prompts, every 512 tokens, and what `add` names. 0: nothing.
    int64_t prefix_bytes = 0;
  };
  using Id = uint64_t;

  /// `model` must outlive it. Throws `Error` for limits out of range.
  explicit Scheduler(const Model& model);
  Scheduler(const Model& model, const Limits& limits);
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;
  ~Scheduler();

  /// shared_tokens: of the prompt, that other prompts are likely to begin with; 0: nothing is known of that.
  Id add(Generation generation, int64_t shared_tokens = 0);
  /// Continues in `sequence`, which has seen the first of the generation's tokens (not all), and must outlive it.
  Id add(Generation generation, Sequence& sequence);

  enum class Prompts : uint8_t { run, wait };
  /// Runs one step; false if there is nothing to run. `wait`: prompts are not brought on, texts whose prompt was run
  /// are. Throws what `Model::forward` throws: nothing has changed then.
  bool step(Prompts prompts = Prompts::run);
  /// Tokens that the last step left of the prompts' budget beside decoding. Below 1: none.
  int64_t prefill_tokens_left() const noexcept;

  /// Forgets a generation, done or not.
  void cancel(Id id);

  /// What steps are computed in. Other calls may be, too, between steps.
  Workspace& workspace() noexcept;

  /// A generation and how far it is.
  struct Progress {
    enum class Stage : uint8_t { waiting, prefill, decode, done };

    Id id = 0;
    Stage stage = Stage::waiting;
    int64_t prompt_tokens = 0;
    int64_t reused_tokens = 0;  ///< of the prompt, that need not be run
    int64_t run_tokens = 0;     ///< of prompt and text
    int64_t new_tokens = 0;
  };
  /// All that were not taken or cancelled, in the order in which they came.
  std::vector<Progress> progress() const;

  /// What there is so far of a generation that is not done; null for others. Valid until the next call of a function
  /// that is not const.
  const GenerateResult* result_so_far(Id id) const;

  /// The result of a generation that is done, which is then forgotten; empty if it is not done. Throws what the
  /// generation's `on_text` has thrown, and `Error` where no token could be chosen.
  std::optional<GenerateResult> take(Id id);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Continues one text again and again, and runs only what is new of it.
class Session {
 public:
  /// Both must outlive it.
  Session(const Model& model, const Tokenizer& tokenizer);

  /// Continues `tokens`. If they begin with all that was run before, only the rest is run; otherwise everything is.
  /// Throws `Error` for no tokens and for options out of range, `ContextError` for more tokens than the context holds.
  GenerateResult generate(std::span<const int32_t> tokens, const GenerateOptions& options = {}, OnText on_text = {});

  /// Forgets what was run.
  void reset();

 private:
  const Model& model_;
  const Tokenizer& tokenizer_;
  Scheduler scheduler_;
  Sequence sequence_;
  std::vector<int32_t> seen_;  // what sequence_ has seen
};

}  // namespace hxq
