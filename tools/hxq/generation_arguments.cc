#include "generation_arguments.h"

#include <fmt/ranges.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>

#include "console.h"
#include "hxq/error.h"
#include "hxq/utf8.h"
#include "usage.h"

namespace hxq::tools {
namespace {

double per_second(size_t count, double seconds) { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }

/// Tokens that the model ran for the prompt, and for the text after it.
size_t prompt_runs(const GenerateResult& result) {
  return result.prompt_tokens.size() - static_cast<size_t>(result.reused_tokens);
}
size_t decode_runs(const GenerateResult& result) { return result.tokens.empty() ? 0 : result.tokens.size() - 1; }

/// Options for choosing among tokens, where nothing is chosen, are most likely a temperature that was forgotten,
/// whatever their values.
void check_sampling(const SamplingOptions& sampling, std::span<CLI::Option* const> for_choosing) {
  if (sampling.temperature != 0) return;
  std::vector<std::string> unused;
  for (const CLI::Option* option : for_choosing) {
    if (option->count() > 0) unused.push_back(option->get_name());
  }
  if (unused.empty()) return;
  throw CLI::ValidationError(
      fmt::format("{} without effect: --temperature is 0, which takes the most likely token", fmt::join(unused, ", ")),
      CLI::ExitCodes::ValidationError);
}

}  // namespace

CLI::Option* add_texts(CLI::App& app, const std::string& name, std::vector<std::string>& texts,
                       const std::string& description) {
  // One argument each time, so that what follows is not taken for another, nor "[a,b]" for a list.
  return app.add_option(name, texts, description)->allow_extra_args(false);
}

void add_generation_options(CLI::App& app, GenerateOptions& options) {
  SamplingOptions& sampling = options.sampling;
  app.add_option("-n,--max-tokens", options.max_tokens, "New tokens at most")
      ->capture_default_str()
      ->check(whole_number(0));
  app.add_option("--temperature", sampling.temperature, "0: always the most likely token")
      ->capture_default_str()
      ->check(number("a number, at least 0", [](double value) { return value >= 0 && std::isfinite(value); }));
  CLI::Option* top_k = app.add_option("--top-k", sampling.top_k, "Choose among the k most likely tokens (0: all)")
                           ->capture_default_str()
                           ->check(whole_number(0));
  CLI::Option* top_p =
      app.add_option("--top-p", sampling.top_p, "Choose among the likeliest tokens that make up this probability")
          ->capture_default_str()
          ->check(number("a number above 0 and at most 1", [](double value) { return value > 0 && value <= 1; }));
  app.add_option("--repetition-penalty", sampling.repetition_penalty, "> 1: tokens seen before are less likely")
      ->capture_default_str()
      ->check(number("a number above 0", [](double value) { return value > 0 && std::isfinite(value); }));
  CLI::Option* seed = app.add_option("--seed", sampling.seed, "The same seed gives the same text")
                          ->capture_default_str()
                          ->check(whole_number<uint64_t>(0));
  add_texts(app, "--stop", options.stop, "End before this text (may be given more than once)")
      ->check(CLI::Validator(
          [](const std::string& text) {
            if (text.empty()) return not_as_expected("a text", text);
            return first_invalid_utf8(text) ? not_as_expected("UTF-8 text", "other bytes") : std::string();
          },
          ""));
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on past end-of-text tokens");
  app.final_callback(
      [&sampling, for_choosing = std::array{top_k, top_p, seed}] { check_sampling(sampling, for_choosing); });
}

void check_shows_messages(const ChatTemplate& chat_template, const Tokenizer& tokenizer) {
  const auto prompt = [&](const char* message) {
    return chat_template.render(std::vector<ChatMessage>{{"user", message}}, tokenizer).text;
  };
  try {
    if (prompt("Hello") != prompt("Good morning")) return;
  } catch (const Error&) {
    return;  // it looks at messages, and wants others
  }
  throw Error("is no chat template for text: it does not show the text of a message", {.file = chat_template.file()});
}

nlohmann::ordered_json result_json(const GenerateResult& result) {
  return {{"prompt_tokens", result.prompt_tokens},
          {"text", result.text},
          {"tokens", result.tokens},
          {"stop_reason", name_of(result.stop_reason)},
          {"prompt_tokens_per_second", per_second(prompt_runs(result), result.prompt_seconds)},
          {"decode_tokens_per_second", per_second(decode_runs(result), result.decode_seconds)}};
}

std::string dumped(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

void print_speed(const std::vector<GenerateResult>& results, double seconds) {
  size_t prompt = 0, tokens = 0;
  for (const GenerateResult& result : results) {
    prompt += prompt_runs(result);
    tokens += result.tokens.size();
  }
  if (results.size() == 1) {
    const GenerateResult& result = results.front();
    print_error(fmt::format("prompt: {} tokens, {:.1f} tokens/s; decode: {} tokens, {:.1f} tokens/s\n", prompt,
                            per_second(prompt, result.prompt_seconds), tokens,
                            per_second(decode_runs(result), result.decode_seconds)));
  } else {
    print_error(fmt::format("{} prompts of {} tokens, and {} new tokens: {:.1f} tokens/s in all\n", results.size(),
                            prompt, tokens, per_second(prompt + tokens, seconds)));
  }
}

}  // namespace hxq::tools
