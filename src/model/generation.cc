#include <fmt/format.h>

#include <algorithm>

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
    emit(filter_.push(decoder_.push(token)), text);
    return !filter_.stopped();
  }

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
};

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

bool Generation::asked_to_stop() const { return impl_->options.interrupted && impl_->options.interrupted(); }

void Generation::interrupt() {
  if (!impl_->done) impl_->finish(StopReason::interrupted);
}

void Generation::next(std::span<float> logits) {
  Impl& my = *impl_;
  std::vector<int32_t>& chosen = my.result.tokens;
  const auto wanted = static_cast<size_t>(my.options.max_tokens);
  if (chosen.size() == wanted) return my.finish(StopReason::length);
  if (asked_to_stop()) return my.finish(StopReason::interrupted);
  const int32_t token = my.sampler.choose(logits);
  chosen.push_back(token);
  if (std::ranges::count(my.ends, token) > 0) return my.finish(StopReason::eos);
  if (!my.writer.push(token, my.result.text)) return my.finish(StopReason::stop);
  if (chosen.size() == wanted) return my.finish(StopReason::length);
  if (std::ssize(my.tokens) == my.context_length) return my.finish(StopReason::context);
  my.tokens.push_back(token);
}

}  // namespace hxq
