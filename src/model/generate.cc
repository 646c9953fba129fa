#include "hxq/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "hxq/error.h"
#include "hxq/scheduler.h"

namespace hxq {

void check_prompt_length(const ModelInfo& model, int64_t tokens) {
  if (tokens == 0) throw Error("the prompt has no tokens");
  if (model.context_length > 0 && tokens > model.context_length) {
    throw ContextError(
        fmt::format("the prompt has {} tokens; the model's context holds {}", tokens, model.context_length));
  }
}

std::vector<int32_t> prompt_tokens(const Model& model, const Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<int32_t> tokens = tokenizer.encode(prompt);
  if (tokens.empty() && tokenizer.bos_id()) tokens = {*tokenizer.bos_id()};
  if (tokens.empty() && model.info().bos_token >= 0) tokens = {model.info().bos_token};
  if (tokens.empty()) {
    throw Error("the prompt is empty, and neither tokenizer nor model names a beginning-of-text token to start from");
  }
  check_prompt_length(model.info(), std::ssize(tokens));
  return tokens;
}

GenerateResult generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                        const GenerateOptions& options, const OnText& on_text) {
  return Session(model, tokenizer).generate(prompt_tokens(model, tokenizer, prompt), options, on_text);
}

std::vector<GenerateResult> generate_all(const Model& model, const Tokenizer& tokenizer,
                                         std::span<const std::string> prompts, const GenerateOptions& options,
                                         const std::function<void(size_t, std::string_view)>& on_text) {
  Scheduler scheduler(model);
  std::vector<Scheduler::Id> ids;
  for (size_t i = 0; i < prompts.size(); ++i) {
    OnText on_piece;
    if (on_text) on_piece = [&on_text, i](std::string_view text) { on_text(i, text); };
    ids.push_back(scheduler.add(Generation(model.info(), tokenizer, prompt_tokens(model, tokenizer, prompts[i]),
                                           options, std::move(on_piece))));
  }
  std::vector<GenerateResult> results(ids.size());
  std::vector<size_t> open(ids.size());
  std::iota(open.begin(), open.end(), size_t{0});
  for (bool more = true; more;) {
    more = scheduler.step();
    std::erase_if(open, [&](size_t i) {
      std::optional<GenerateResult> result = scheduler.take(ids[i]);
      if (!result) return false;
      results[i] = std::move(*result);
      if (on_text) on_text(i, {});
      return true;
    });
  }
  return results;
}

Session::Session(const Model& model, const Tokenizer& tokenizer)
    : model_(model), tokenizer_(tokenizer), scheduler_(model), sequence_(model.new_sequence()) {}

void Session::reset() {
  sequence_.reset();
  seen_.clear();
}

GenerateResult Session::generate(std::span<const int32_t> tokens, const GenerateOptions& options, OnText on_text) {
  Generation generation(model_.info(), tokenizer_, {tokens.begin(), tokens.end()}, options, std::move(on_text));
  // At least one token is run: the logits of the last run are gone.
  const bool extends = seen_.size() < tokens.size() && std::equal(seen_.begin(), seen_.end(), tokens.begin());
  if (!extends) reset();
  const Scheduler::Id id = scheduler_.add(std::move(generation), sequence_);
  try {
    while (scheduler_.step()) {
    }
    GenerateResult result = scheduler_.take(id).value();
    seen_.assign(tokens.begin(), tokens.end());
    seen_.insert(seen_.end(), result.tokens.begin(), result.tokens.end());
    seen_.resize(static_cast<size_t>(sequence_.position()));  // the last one chosen was not run
    return result;
  } catch (...) {
    scheduler_.cancel(id);
    reset();  // some of the tokens may have been run
    throw;
  }
}

}  // namespace hxq
