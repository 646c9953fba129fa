#include "hxq/serve.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "console.h"
#include "generation_arguments.h"
#include "hxq/error.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct ServeArguments {
  std::string dir;
  std::string api_key_file;
  std::string template_file;
  std::string pooling = "mean";
  ServeOptions options;
  ModelArguments model;
};

/// A key on each line, without the blanks around it; empty lines are left out.
std::vector<std::string> keys_of(const std::string& path) {
  std::vector<std::string> keys;
  const std::string text = read_text(path);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_of("\r\n", begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    constexpr const char* kBlanks = " \t";
    if (const size_t first = line.find_first_not_of(kBlanks); first != line.npos) {
      keys.push_back(line.substr(first, line.find_last_not_of(kBlanks) + 1 - first));
    }
    begin = end + 1;
  }
  if (keys.empty()) throw Error("has no line, expected an API key on each", {.file = name_of_text(path)});
  return keys;
}

/// What clients call the model: the folder's own name.
std::string name_of_model(const std::string& dir) {
  const std::filesystem::path path = std::filesystem::weakly_canonical(dir);
  return path.filename().empty() ? "model" : path.filename().string();
}

/// None where the model has none, or one of its own that shows no message: all but chat can be served.
std::optional<ChatTemplate> template_of(const ServeArguments& arguments, const Tokenizer& tokenizer) {
  const bool own = arguments.template_file.empty();
  std::optional<ChatTemplate> found =
      own ? ChatTemplate::load(arguments.dir) : ChatTemplate::read(arguments.template_file);
  if (!found) return found;
  try {
    check_shows_messages(*found, tokenizer);
  } catch (const Error& error) {
    if (!own) throw;
    print_notice(fmt::format("{}; chat is not served", error.what()));
    found.reset();
  }
  return found;
}

int run(ServeArguments& arguments) {
  ServeOptions& options = arguments.options;
  options.interrupted = is_interrupted;
  options.pooling = arguments.pooling == "last" ? Pooling::last : Pooling::mean;
  options.model_name = name_of_model(arguments.dir);
  if (!arguments.api_key_file.empty()) options.api_keys = keys_of(arguments.api_key_file);
  const Model model = arguments.model.open(arguments.dir);
  const Tokenizer tokenizer = Tokenizer::load(arguments.dir);
  const std::optional<ChatTemplate> chat_template = template_of(arguments, tokenizer);
  Server server(model, tokenizer, chat_template ? &*chat_template : nullptr, options);
  print(fmt::format("{} serves {}\n", server.address(), options.model_name));
  server.run();
  check_interrupt();
  return 0;
}

}  // namespace

RunVerb add_serve(CLI::App& app) {
  auto arguments = std::make_shared<ServeArguments>();
  ServeOptions& options = arguments->options;
  app.add_option("DIR", arguments->dir, "Model folder, compressed or dense")->required();
  app.add_option("--host", options.host, "Address to listen on")->capture_default_str();
  app.add_option("--port", options.port, "Port to listen on (0: one that is free)")
      ->capture_default_str()
      ->check(whole_number(0, 65535));
  app.add_option("--parallel", options.parallel, "Texts that are continued at once; more wait")
      ->capture_default_str()
      ->check(whole_number(1, 4096));
  app.add_option(
         "--context", options.context,
         "Tokens that a text may have with its prompt (what the model's context holds; 65536 where it has no end)")
      ->check(whole_number(1));
  app.add_option("--pooling", arguments->pooling,
                 "What an embedding is made of: the mean of a text's hidden states, or the last")
      ->capture_default_str()
      ->transform(CLI::IsMember({"mean", "last"}, CLI::ignore_case));
  app.add_option("--prompt-budget", options.prompt_budget,
                 "Tokens of prompts in a step that also continues texts: fewer keep streams steadier, more are faster")
      ->capture_default_str()
      ->check(whole_number(1, 1 << 20));
  add_size(app, "--prefix-cache", options.prefix_bytes, 0,
           "Memory for states after beginnings of prompts, from where others go on (256MB; 0: none)");
  add_path(app, "--api-key-file", arguments->api_key_file, "Serve clients that have one of the keys in this file");
  add_texts(app, "--cors-origin", options.cors_origins,
            "Let pages of this origin in, as https://example.org (may be given more than once; *: all)");
  add_path(app, "--template", arguments->template_file, "Use the chat template in this file, not the model's own");
  const auto add_seconds = [&app](const char* name, double& seconds, const char* description) {
    app.add_option(name, seconds, description)
        ->capture_default_str()
        ->check(number("a number from 0 to 86400", [](double value) { return value >= 0 && value <= 86400; }))
        ->group("Limits");
  };
  app.add_option("--waiting", options.waiting, "Texts that may wait; more are refused")
      ->capture_default_str()
      ->check(whole_number(0, 1 << 20))
      ->group("Limits");
  app.add_option(
         "--queued-tokens", options.queued_tokens,
         "Tokens of all prompts that wait or run, and of all texts that one request may ask for; more are refused")
      ->capture_default_str()
      ->check(whole_number(1))
      ->group("Limits");
  add_seconds("--drain", options.drain_seconds, "Seconds for texts to be completed after SIGTERM or ^C");
  add_seconds("--head-seconds", options.head_seconds, "For a request's head to come; connections may be idle as long");
  add_seconds("--body-seconds", options.body_seconds, "For its body to come");
  add_seconds("--write-seconds", options.write_seconds, "For a client to take what is written to it");
  add_seconds("--silence-seconds", options.silence_seconds, "After which a stream with nothing to say gets a comment");
  arguments->model.add_to(app);
  app.footer(
      "OpenAI's API: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models; besides /tokenize, "
      "/detokenize, /health,\n"
      "/metrics (Prometheus) and /slots. The address itself, opened in a browser, is a page to chat with. Ends on ^C,\n"
      "SIGTERM or SIGHUP: no more requests are taken, texts are completed, as far as --drain goes; a second one ends "
      "it\n"
      "at once.\n"
      "Example: hxq serve build/mine --port 8080");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
