#include "hxq/generate.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "console.h"
#include "generation_arguments.h"
#include "hxq/error.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct GenerateArguments {
  std::string dir;
  std::vector<std::string> prompts;
  std::string prompt_file;
  std::string prompts_file;
  GenerateOptions options;
  ModelArguments model;
  bool stream = false;
  bool echo = false;
  bool json = false;
};

std::vector<std::string> lines_of(const std::string& path) {
  const std::string text = read_text(path);
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty()) lines.push_back(std::move(line));
    begin = end + 1;
  }
  if (lines.empty()) throw Error("has no line, expected a prompt on each", {.file = name_of_text(path)});
  return lines;
}

/// What is piped or redirected into the command, less the end of its last line, which `echo` adds. Nothing else is
/// waited for.
std::string piped_prompt() {
  struct stat input {};
  const bool piped = fstat(STDIN_FILENO, &input) == 0 && (S_ISFIFO(input.st_mode) || S_ISREG(input.st_mode));
  std::string text = piped ? read_text("-") : "";
  for (const std::string_view end : {"\r\n", "\n"}) {
    if (text.ends_with(end)) return text.substr(0, text.size() - end.size());
  }
  return text;
}

std::vector<std::string> prompts_of(const GenerateArguments& arguments) {
  if (!arguments.prompts_file.empty()) return lines_of(arguments.prompts_file);
  if (!arguments.prompt_file.empty()) return {read_text(arguments.prompt_file)};
  if (arguments.prompts.empty()) return {piped_prompt()};
  for (const std::string& prompt : arguments.prompts) check_utf8(prompt, "--prompt");
  return arguments.prompts;
}

/// Prints results as text, each under a heading when there are several. Of texts that grow side by side, the first that
/// is not complete is printed as it comes; what others have by then waits.
class TextPrinter {
 public:
  TextPrinter(const GenerateArguments& arguments, const std::vector<std::string>& prompts)
      : echo_(arguments.echo),
        stream_(arguments.stream || isatty(STDOUT_FILENO) == 1),
        prompts_(prompts),
        waiting_(prompts.size()),
        complete_(prompts.size()) {}

  void add(size_t prompt, std::string_view text) {
    complete_[prompt] = text.empty();
    waiting_[prompt] += text;
    while (stream_ && current_ < prompts_.size()) {
      begin(current_);
      print(waiting_[current_]);
      waiting_[current_].clear();
      if (!complete_[current_]) break;
      ++current_;
    }
  }

  void finish() {
    for (; current_ < prompts_.size(); ++current_) {
      begin(current_);
      print(waiting_[current_]);
    }
    print("\n");
  }

 private:
  /// The heading and the echoed prompt, once.
  void begin(size_t prompt) {
    if (prompt < begun_) return;
    if (prompts_.size() > 1) {
      print(fmt::format("{}==> prompt {} of {} <==\n", begun_ > 0 ? "\n\n" : "", begun_ + 1, prompts_.size()));
    }
    if (echo_) print(prompts_[prompt]);
    ++begun_;
  }

  bool echo_, stream_;
  const std::vector<std::string>& prompts_;
  std::vector<std::string> waiting_;  // text that was not printed yet
  std::vector<bool> complete_;
  size_t current_ = 0;  // the first prompt that is not printed to its end
  size_t begun_ = 0;
};

int run(GenerateArguments& arguments) {
  arguments.options.interrupted = is_interrupted;
  const std::vector<std::string> prompts = prompts_of(arguments);
  const Model model = arguments.model.open(arguments.dir);
  const Tokenizer tokenizer = Tokenizer::load(arguments.dir);
  TextPrinter printer(arguments, prompts);
  const auto start = std::chrono::steady_clock::now();
  const std::vector<GenerateResult> results =
      generate_all(model, tokenizer, prompts, arguments.options, [&](size_t prompt, std::string_view text) {
        if (!arguments.json) printer.add(prompt, text);
      });
  if (arguments.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (size_t i = 0; i < results.size(); ++i) {
      nlohmann::ordered_json item = {{"prompt", prompts[i]}};
      item.update(result_json(results[i]));
      list.push_back(std::move(item));
    }
    const bool one = prompts.size() == 1 && arguments.prompts_file.empty();
    print(dumped(one ? list[0] : list, 2));
  } else {
    printer.finish();
  }
  print_speed(results, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  if (std::ranges::count(results, StopReason::interrupted, &GenerateResult::stop_reason) > 0) throw Interrupted{};
  return 0;
}

}  // namespace

RunVerb add_generate(CLI::App& app) {
  auto arguments = std::make_shared<GenerateArguments>();
  app.add_option("DIR", arguments->dir, "Model folder, compressed or dense")->required();
  auto* prompt = add_texts(app, "-p,--prompt", arguments->prompts,
                           "Text to continue (may be given more than once: each is continued by itself)");
  auto* file =
      add_path(app, "--prompt-file", arguments->prompt_file, "Read the prompt from this file (-: standard input)");
  auto* lines = add_path(app, "--prompts-file", arguments->prompts_file,
                         "Continue each line of this file by itself (empty lines are left out)");
  file->excludes(prompt);
  lines->excludes(prompt)->excludes(file);
  add_generation_options(app, arguments->options);
  auto* stream = app.add_flag("--stream", arguments->stream, "Print text as it comes (always so on a terminal)");
  auto* echo = app.add_flag("--echo", arguments->echo, "Print the prompt before its continuation");
  app.add_flag("--json", arguments->json, "Print JSON, when all is done: an object, or a list for several prompts")
      ->excludes(stream)
      ->excludes(echo);
  arguments->model.add_to(app);
  app.footer(
      "Without a prompt option, what is piped or redirected into the command is read to its end and continued, less\n"
      "one line end at its end. At a terminal and from /dev/null nothing is read, and the prompt is empty. An empty\n"
      "prompt starts from the beginning-of-text token. A prompt longer than the context is an error.\n"
      "Text ends at --max-tokens, at an end-of-text token of generation_config.json, config.json or the tokenizer,\n"
      "before a --stop text, or where the model's context is full; --json says which: stop_reason is length, eos, "
      "stop\n"
      "or context; or interrupted, since what there is by then is printed after ^C, too.\n"
      "Sampling settings of generation_config.json are not used: without options, the most likely token is taken.\n"
      "Example: hxq generate build/mine --prompt \"The city of London is\" --max-tokens 64 --stream");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
