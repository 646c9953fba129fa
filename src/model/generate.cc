#include "hxq/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "hxq/error.h"
#include "model/stop_filter.h"

namespace hxq {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check_length(const Model& model, size_t tokens) {
  const int64_t limit = model.info().context_length;
  if (tokens == 0) throw Error("the prompt has no tokens");
  if (limit > 0 && static_cast<int64_t>(tokens) > limit) {
    throw ContextError(fmt::format("the prompt has {} tokens; the model's context holds {}", tokens, limit));
  }
}

void check(const GenerateOptions& options) {
  if (options.max_tokens < 0) throw Error(fmt::format("{} new tokens: expected 0 or more", options.max_tokens));
  Sampler{options.sampling};
}

/// New tokens as text: decoded, filtered for stop strings, and passed on.
class TextWriter {
 public:
  TextWriter(const Tokenizer& tokenizer, const GenerateOptions& options, const OnText& on_text, std::string& text)
      : decoder_(tokenizer), filter_(options.stop), on_text_(on_text), text_(text) {}

  /// False once a stop string has come.
  bool push(int32_t token) {
    emit(filter_.push(decoder_.push(token)));
    return !filter_.stopped();
  }

  /// Writes what was held back. False if a stop string came, now or before.
  bool finish() {
    if (!filter_.stopped()) emit(filter_.push(decoder_.flush()));
    if (!filter_.stopped()) emit(filter_.finish());
    return !filter_.stopped();
  }

 private:
  void emit(const std::string& text) {
    text_ += text;
    if (on_text_ && !text.empty()) on_text_(text);
  }

  StreamDecoder decoder_;
  StopFilter filter_;
  const OnText& on_text_;
  std::string& text_;
};

}  // namespace

Session::Session(const Model& model, const Tokenizer& tokenizer)
    : model_(model),
      tokenizer_(tokenizer),
      state_(model.new_state()),
      logits_(static_cast<size_t>(model.info().vocab_size)) {}

void Session::reset() {
  state_.reset();
  seen_.clear();
}

void Session::run(std::span<const int32_t> tokens) {
  try {
    model_.forward(tokens, state_, Logits::last, logits_);
    seen_.insert(seen_.end(), tokens.begin(), tokens.end());
  } catch (...) {
    reset();  // the state may have seen some of them
    throw;
  }
}

void Session::run_prompt(std::span<const int32_t> tokens, GenerateResult& result) {
  const auto start = Clock::now();
  // At least one token is run: sampling changes the logits, so those of the last run are gone.
  const bool extends = seen_.size() < tokens.size() && std::equal(seen_.begin(), seen_.end(), tokens.begin());
  if (!extends) reset();
  result.reused_tokens = static_cast<int64_t>(seen_.size());
  run(tokens.subspan(seen_.size()));
  result.prompt_seconds = seconds_since(start);
}

GenerateResult Session::generate(std::span<const int32_t> tokens, const GenerateOptions& options,
                                 const OnText& on_text) {
  check(options);
  check_length(model_, tokens.size());
  Sampler sampler(options.sampling);
  sampler.observe(tokens);
  GenerateResult result;
  result.prompt_tokens.assign(tokens.begin(), tokens.end());
  run_prompt(tokens, result);

  TextWriter writer(tokenizer_, options, on_text, result.text);
  const auto ends = [&](int32_t token) {
    return !options.ignore_eos &&
           (std::ranges::count(model_.info().eos_tokens, token) > 0 || token == tokenizer_.eos_id());
  };
  const auto start = Clock::now();
  result.stop_reason = "length";
  while (static_cast<int64_t>(result.tokens.size()) < options.max_tokens) {
    if (options.interrupted && options.interrupted()) {
      result.stop_reason = "interrupted";
      break;
    }
    const int32_t token = sampler.choose(logits_);
    result.tokens.push_back(token);
    if (ends(token)) {
      result.stop_reason = "eos";
      break;
    }
    if (!writer.push(token)) break;
    if (static_cast<int64_t>(result.tokens.size()) == options.max_tokens) break;
    if (state_.position() == model_.info().context_length) {
      result.stop_reason = "context";
      break;
    }
    run({&token, 1});
  }
  if (!writer.finish()) result.stop_reason = "stop";
  result.decode_seconds = seconds_since(start);
  return result;
}

std::vector<int32_t> prompt_tokens(const Model& model, const Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<int32_t> tokens = tokenizer.encode(prompt);
  if (tokens.empty() && tokenizer.bos_id()) tokens = {*tokenizer.bos_id()};
  if (tokens.empty() && model.info().bos_token >= 0) tokens = {model.info().bos_token};
  if (tokens.empty()) {
    throw Error("the prompt is empty, and neither tokenizer nor model names a beginning-of-text token to start from");
  }
  check_length(model, tokens.size());
  return tokens;
}

GenerateResult generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                        const GenerateOptions& options, const OnText& on_text) {
  return Session(model, tokenizer).generate(prompt_tokens(model, tokenizer, prompt), options, on_text);
}

std::vector<GenerateResult> generate_all(const Model& model, const Tokenizer& tokenizer,
                                         std::span<const std::string> prompts, const GenerateOptions& options,
                                         const std::function<void(size_t, std::string_view)>& on_text) {
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string& prompt : prompts) tokens.push_back(prompt_tokens(model, tokenizer, prompt));
  Session session(model, tokenizer);
  std::vector<GenerateResult> results;
  for (size_t i = 0; i < tokens.size() && (i == 0 || results.back().stop_reason != "interrupted"); ++i) {
    session.reset();  // the whole prompt in one run, as alone
    results.push_back(session.generate(tokens[i], options, [&](std::string_view text) {
      if (on_text) on_text(i, text);
    }));
  }
  return results;
}

}  // namespace hxq
