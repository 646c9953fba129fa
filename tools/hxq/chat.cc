#include "hxq/chat.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
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

struct ChatArguments {
  std::string dir;
  std::optional<std::string> system;
  std::string template_file;
  GenerateOptions options;
  ModelArguments model;
  bool json = false;
};

ChatTemplate template_of(const ChatArguments& arguments) {
  if (!arguments.template_file.empty()) return ChatTemplate::read(arguments.template_file);
  std::optional<ChatTemplate> found = ChatTemplate::load(arguments.dir);
  if (!found) {
    throw Error("the model has no chat template: `hxq generate` serves it, or give one with --template",
                {.file = arguments.dir});
  }
  return std::move(*found);
}

/// A template may have no place for what --system says.
void check_system(const ChatArguments& arguments, const ChatTemplate& chat_template, const Tokenizer& tokenizer) {
  if (!arguments.system || arguments.system->empty()) return;
  const auto prompt = [&](const std::string& system) {
    return chat_template.render(std::vector<ChatMessage>{{"system", system}, {"user", "Hello"}}, tokenizer).text;
  };
  if (prompt(*arguments.system) != prompt(*arguments.system + ".")) return;
  throw UsageError("--system without effect: the chat template has no place for it", {.file = arguments.dir});
}

/// The next line from the user; false at the end.
bool read_line(bool terminal, std::string& line) {
  if (terminal) print("> ");
  errno = 0;
  const bool read = static_cast<bool>(std::getline(std::cin, line));
  check_interrupt();
  if (std::ferror(stdin) != 0) throw_cannot_read("-");
  if (!read && terminal) print("\n");
  if (line.ends_with('\r')) line.pop_back();
  return read;
}

void answer(Chat& chat, const std::string& line, const ChatArguments& arguments) {
  const GenerateResult result = chat.say(line, arguments.options, [&](std::string_view text) {
    check_interrupt();
    if (!arguments.json) print(text);
  });
  if (!arguments.json) {
    print("\n");
    return;
  }
  nlohmann::ordered_json json = {{"message", line}};
  json.update(result_json(result));
  json["reused_tokens"] = result.reused_tokens;
  print(dumped(json, -1));
}

/// False, and one line on standard error, for a message that gets no answer; the conversation is then as before.
bool answered(Chat& chat, const std::string& line, const ChatArguments& arguments, bool terminal) {
  if (line.starts_with('/')) {
    print_notice(
        fmt::format("{} is no command: /reset begins anew, /exit ends (a message may begin with \" /\")", line));
    return false;
  }
  try {
    check_utf8(line, "the message");
    answer(chat, line, arguments);
    return true;
  } catch (const ContextError& error) {
    print_notice(fmt::format("{}: the message is taken back, /reset begins anew", error.what()));
  } catch (const Error& error) {
    if (!terminal) throw;
    print_notice(error.what());
  }
  return false;
}

int run(const ChatArguments& arguments) {
  if (arguments.system) check_utf8(*arguments.system, "--system");
  const Model model = arguments.model.open(arguments.dir);
  const ChatTemplate chat_template = template_of(arguments);
  const Tokenizer tokenizer = Tokenizer::load(arguments.dir);
  check_shows_messages(chat_template, tokenizer);
  check_system(arguments, chat_template, tokenizer);
  Chat chat(model, tokenizer, chat_template, arguments.system);
  const bool terminal = isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1;
  if (terminal) print_error("/reset begins anew, /exit or ^D ends.\n");
  bool all_answered = true;
  for (std::string line; read_line(terminal, line);) {
    if (line == "/exit") break;
    if (line == "/reset") {
      chat.reset();
    } else if (!line.empty()) {
      all_answered &= answered(chat, line, arguments, terminal);
    }
  }
  return terminal || all_answered ? 0 : 1;
}

}  // namespace

RunVerb add_chat(CLI::App& app) {
  auto arguments = std::make_shared<ChatArguments>();
  arguments->options.max_tokens = 512;
  app.add_option("DIR", arguments->dir, "Model folder, compressed or dense")->required();
  app.add_option("--system", arguments->system,
                 "What the model is told first; empty: nothing, in place of what its template says then");
  add_path(app, "--template", arguments->template_file, "Use the chat template in this file, not the model's own");
  add_generation_options(app, arguments->options);
  app.add_flag("--json", arguments->json, "Print a line of JSON for each answer");
  arguments->model.add_to(app);
  app.footer(
      "Each line of standard input is a message. /reset begins the conversation anew, /exit or the end of input ends "
      "it;\n"
      "empty lines are left out. A message that the model's context does not hold is taken back. Messages that got no\n"
      "answer make the exit code 1, except at a terminal.\n"
      "Example: hxq chat build/mine --template models/plain-chat.jinja --stop user:");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
