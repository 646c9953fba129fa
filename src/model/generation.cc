#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "hxq/error.h"
#include "hxq/scheduler.h"
#include "model/stop_filter.h"

namespace hxq {
namespace {

/// New tokens as text: decoded, filtered for stop strings, and passed on.
class TextWriter {
 public:
  TextWriter(const Tokenizer& tokenizer, const std::vector<std::string>& stop, OnText on_text)
      : decoder_(tokenizer), filter_(stop), on_text_(std::move(on_text)) {}

  /// False once a stop string has come.
  bool push(int32_t token, std::string& text) {
    const std::string piece = decoder_.push(token);
    decoded_ += piece.size();
    emit(filter_.push(piece), text);
    return !filter_.stopped();
  }

  /// Bytes of text that all tokens so far complete.
  size_t decoded() const noexcept { return decoded_; }

  /// Writes what was held back. False if a stop string came, now or before.
  bool finish(std::string& text) {
    if (!filter_.stopped()) emit(filter_.push(decoder_.flush()), text);
    if (!filter_.stopped()) emit(filter_.finish(), text);
    return !filter_.stopped();
  }

 private:
  void emit(const std::string& piece, std::string& text) {
    text += piece;
    if (on_text_ && !piece.empty()) on_text_(piece);
  }

  StreamDecoder decoder_;
  StopFilter filter_;
  OnText on_text_;
  size_t decoded_ = 0;
};

/// Of `token` and of the likeliest `count`, by logits [vocab].
TokenLogprobs logprobs_of(std::span<const float> logits, int32_t token, int64_t count) {
  const float largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - largest));
  const double normalizer = static_cast<double>(largest) + std::log(sum);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - normalizer);
  };
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto kept = ids.begin() + std::min<int64_t>(count, std::ssize(ids));
  std::partial_sort(ids.begin(), kept, ids.end(), [&](int32_t a, int32_t b) {
    const float of_a = logits[static_cast<size_t>(a)], of_b = logits[static_cast<size_t>(b)];
    return of_a != of_b ? of_a > of_b : a < b;
  });
  TokenLogprobs found{.logprob = logprob(token)};
  for (auto id = ids.begin(); id != kept; ++id) found.top.emplace_back(*id, logprob(*id));
  return found;
}

}  // namespace

std::string_view name_of(StopReason reason) noexcept {
  switch (reason) {
    case StopReason::length:
      return "length";
    case StopReason::eos:
      return "eos";
    case StopReason::stop:
      return "stop";
    case StopReason::context:
      return "context";
    case StopReason::interrupted:
      return "interrupted";
  }
  return {};
}

struct Generation::Impl {
  Impl(const ModelInfo& model, const Tokenizer& tokenizer, std::vector<int32_t> prompt, const GenerateOptions& given,
       OnText on_text)
      : options(given),
        context_length(model.context_length),
        ends(model.eos_tokens),
        sampler(given.sampling),
        writer(tokenizer, given.stop, std::move(on_text)),
        tokens(std::move(prompt)) {
    if (tokenizer.eos_id()) ends.push_back(*tokenizer.eos_id());
    if (options.ignore_eos) ends.clear();
    sampler.observe(tokens);
    result.prompt_tokens = tokens;
  }

  bool asked_to_stop() const { return options.interrupted && options.interrupted(); }

  /// Whether another token is to be chosen; ends it otherwise.
  bool takes_another() {
    if (std::ssize(result.tokens) == options.max_tokens) {
      finish(StopReason::length);
    } else if (asked_to_stop()) {
      finish(StopReason::interrupted);
    }
    return !done;
  }

  void take(int32_t token) {
    result.tokens.push_back(token);
    result.text_offsets.push_back(writer.decoded());
    if (std::ranges::count(ends, token) > 0) return finish(StopReason::eos);
    if (!writer.push(token, result.text)) return finish(StopReason::stop);
    if (std::ssize(result.tokens) == options.max_tokens) return finish(StopReason::length);
    if (std::ssize(tokens) == context_length) return finish(StopReason::context);
    tokens.push_back(token);
  }

  void finish(StopReason reason) {
    done = true;
    result.stop_reason = reason;
    if (!writer.finish(result.text)) result.stop_reason = StopReason::stop;
  }

  GenerateOptions options;
  int64_t context_length;
  std::vector<int32_t> ends;
  Sampler sampler;
  TextWriter writer;
  std::vector<int32_t> tokens;
  GenerateResult result = {};
  std::vector<float> logits = {};  // of the last token, where log probabilities are asked for
  bool done = false;
};

Generation::Generation(const ModelInfo& model, const Tokenizer& tokenizer, std::vector<int32_t> prompt,
                       const GenerateOptions& options, OnText on_text) {
  if (options.max_tokens < 0) throw Error(fmt::format("{} new tokens: expected 0 or more", options.max_tokens));
  check_prompt_length(model, std::ssize(prompt));
  impl_ = std::make_unique<Impl>(model, tokenizer, std::move(prompt), options, std::move(on_text));
}

Generation::Generation(Generation&&) noexcept = default;
Generation& Generation::operator=(Generation&&) noexcept = default;
Generation::~Generation() = default;

std::span<const int32_t> Generation::tokens() const noexcept { return impl_->tokens; }
bool Generation::done() const noexcept { return impl_->done; }
const GenerateResult& Generation::result() const noexcept { return impl_->result; }
GenerateResult& Generation::result() noexcept { return impl_->result; }

bool Generation::asked_to_stop() const { return impl_->asked_to_stop(); }

void Generation::interrupt() {
  if (!impl_->done) impl_->finish(StopReason::interrupted);
}

void Generation::next(std::span<float> logits) {
  Impl& my = *impl_;
  if (!my.takes_another()) return;
  // The penalty changes logits.
  const bool wants_logprobs = my.options.logprobs >= 0;
  if (wants_logprobs) my.logits.assign(logits.begin(), logits.end());
  const int32_t token = my.sampler.choose(logits);
  if (wants_logprobs) my.result.logprobs.push_back(logprobs_of(my.logits, token, my.options.logprobs));
  my.take(token);
}

bool Generation::needs_logits() const noexcept { return !impl_->sampler.is_greedy() || impl_->options.logprobs >= 0; }

void Generation::next(int32_t most_likely) {
  assert(!needs_logits());
  if (impl_->takes_another()) impl_->take(Sampler::choose(most_likely));
}

}  // namespace hxq
