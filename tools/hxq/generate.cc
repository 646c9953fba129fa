#include "hxq/generate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "console.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct Arguments {
  std::string dir;
  std::string prompt;
  std::string prompt_file;
  GenerateOptions options;
  ModelArguments model;
  bool stream = false;
  bool echo = false;
  bool json = false;
};

double per_second(size_t count, double seconds) { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }

std::string json_text(const GenerateResult& result, const std::string& prompt) {
  const size_t steps = result.tokens.empty() ? 0 : result.tokens.size() - 1;
  return nlohmann::ordered_json{{"prompt", prompt},
                                {"prompt_tokens", result.prompt_tokens},
                                {"text", result.text},
                                {"tokens", result.tokens},
                                {"stop_reason", result.stop_reason},
                                {"prompt_tokens_per_second", per_second(result.prompt_tokens.size(), result.prompt_seconds)},
                                {"decode_tokens_per_second", per_second(steps, result.decode_seconds)}}
             .dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

int run(const Arguments& arguments) {
  const std::string prompt =
      arguments.prompt_file.empty() ? arguments.prompt : read_text(arguments.prompt_file);
  const Model model = Model::open(arguments.dir, arguments.model.options());
  const Tokenizer tokenizer = Tokenizer::load(arguments.dir);
  const bool stream = !arguments.json && (arguments.stream || isatty(STDOUT_FILENO) == 1);
  if (arguments.echo && !arguments.json) print(prompt);
  const GenerateResult result = generate(model, tokenizer, prompt, arguments.options, [&](std::string_view text) {
    check_interrupt();
    if (stream) print(text);
  });
  if (arguments.json) {
    print(json_text(result, prompt));
  } else {
    print(stream ? "\n" : result.text + "\n");
  }
  const size_t steps = result.tokens.empty() ? 0 : result.tokens.size() - 1;
  fmt::print(stderr, "prompt: {} tokens, {:.1f} tokens/s; decode: {} tokens, {:.1f} tokens/s\n",
             result.prompt_tokens.size(), per_second(result.prompt_tokens.size(), result.prompt_seconds),
             result.tokens.size(), per_second(steps, result.decode_seconds));
  return 0;
}

}  // namespace

RunVerb add_generate(CLI::App& app) {
  auto arguments = std::make_shared<Arguments>();
  GenerateOptions& options = arguments->options;
  app.add_option("DIR", arguments->dir, "Model folder, compressed or dense")->required();
  auto* prompt = app.add_option("-p,--prompt", arguments->prompt, "Text to continue");
  app.add_option("--prompt-file", arguments->prompt_file, "Read the prompt from this file (-: standard input)")
      ->excludes(prompt);
  app.add_option("-n,--max-tokens", options.max_tokens, "New tokens at most")->capture_default_str();
  app.add_option("--temperature", options.sampling.temperature, "0: always the most likely token")
      ->capture_default_str();
  app.add_option("--top-k", options.sampling.top_k, "Choose among the k most likely tokens (0: all)")
      ->capture_default_str();
  app.add_option("--top-p", options.sampling.top_p, "Choose among the likeliest tokens that make up this probability")
      ->capture_default_str();
  app.add_option("--repetition-penalty", options.sampling.repetition_penalty, "> 1: tokens seen before are less likely")
      ->capture_default_str();
  app.add_option("--seed", options.sampling.seed, "The same seed gives the same text")->capture_default_str();
  app.add_option("--stop", options.stop, "End before this text (may be given more than once)");
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on past the end-of-text token");
  app.add_flag("--stream", arguments->stream, "Print text as it comes (always so on a terminal)");
  app.add_flag("--echo", arguments->echo, "Print the prompt before its continuation");
  app.add_flag("--json", arguments->json, "Print JSON");
  arguments->model.add_to(app);
  app.footer("Example: hxq generate build/wiki-mamba-7m-hxq --prompt \"The city of London is\" --max-tokens 64 --stream");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
