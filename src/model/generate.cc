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

}  // namespace

GenerateResult generate(const Model& model, const Tokenizer& tokenizer, std::string_view prompt,
                        const GenerateOptions& options, const std::function<void(std::string_view)>& on_text) {
  if (options.max_tokens < 0) throw Error(fmt::format("{} new tokens: expected 0 or more", options.max_tokens));
  Sampler sampler(options.sampling);
  StopFilter filter(options.stop);
  StreamDecoder decoder(tokenizer);
  GenerateResult result;
  const auto emit = [&](const std::string& text) {
    result.text += text;
    if (on_text && !text.empty()) on_text(text);
  };

  result.prompt_tokens = tokenizer.encode(prompt);
  if (result.prompt_tokens.empty() && model.info().bos_token >= 0) result.prompt_tokens = {model.info().bos_token};
  if (result.prompt_tokens.empty()) throw Error("the prompt has no tokens and the model no beginning-of-text token");
  sampler.observe(result.prompt_tokens);

  State state = model.new_state();
  std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
  auto start = Clock::now();
  model.forward(result.prompt_tokens, state, Logits::last, logits);
  result.prompt_seconds = seconds_since(start);

  start = Clock::now();
  result.stop_reason = "length";
  const std::vector<int32_t>& eos = model.info().eos_tokens;
  while (static_cast<int64_t>(result.tokens.size()) < options.max_tokens) {
    const int32_t token = sampler.choose(logits);
    result.tokens.push_back(token);
    if (!options.ignore_eos && std::ranges::find(eos, token) != eos.end()) {
      result.stop_reason = "eos";
      break;
    }
    emit(filter.push(decoder.push(token)));
    if (filter.stopped()) break;
    if (static_cast<int64_t>(result.tokens.size()) == options.max_tokens) break;
    model.forward({&token, 1}, state, Logits::last, logits);
  }
  if (!filter.stopped()) emit(filter.push(decoder.flush()));
  if (filter.stopped()) {
    result.stop_reason = "stop";
  } else {
    emit(filter.finish());
  }
  result.decode_seconds = seconds_since(start);
  return result;
}

}  // namespace hxq
