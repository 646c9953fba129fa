// The command: finds the verb, runs it, and turns failures into one line and an exit code.

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <new>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "console.h"
#include "hxq/error.h"
#include "hxq/version.h"
#include "usage.h"
#include "verbs.h"

namespace {

using hxq::tools::print_notice;

constexpr int kFailed = 1;
constexpr int kWrongUse = 2;
constexpr int kInterrupted = 128;  // plus the signal, as shells have it

/// The arguments, `help VERB` turned into `VERB --help`.
std::vector<std::string> arguments_of(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments[0] == "help") {
    arguments.erase(arguments.begin());
    arguments.emplace_back("--help");
  }
  return arguments;
}

/// Help or version, as CLI11 has them.
int show_help(const CLI::App& app, const CLI::ParseError& error) {
  std::ostringstream text;
  const int code = app.exit(error, text, text);
  hxq::tools::print(text.str());
  return code;
}

int run(int argc, char** argv) {
  CLI::App app("Compress neural networks without calibration data, and run them in the compressed form.", "hxq");
  app.set_version_flag("-V,--version", std::string("hxq ") + hxq::kVersion);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "`hxq VERB --help` shows a verb's options and an example.\n"
      "Exit codes: 0 done, 1 failed or a check did not hold, 2 wrong use, 130 interrupted (^C), 143 terminated, 129 "
      "hung up.\n"
      "HXQ_TARGET=scalar, avx2, avx512 or amx in the environment forces an instruction set.");

  using hxq::tools::RunVerb;
  std::vector<std::pair<CLI::App*, RunVerb>> verbs;
  const auto add = [&](const char* name, const char* description, RunVerb (*declare)(CLI::App&)) {
    CLI::App* verb = app.add_subcommand(name, description);
    verbs.emplace_back(verb, declare(*verb));
  };
  add("compress", "Compress a model folder", hxq::tools::add_compress);
  add("inspect", "List what a model folder stores", hxq::tools::add_inspect);
  add("verify", "Check a compressed folder, its receipt, and its distance from the source", hxq::tools::add_verify);
  add("decompress", "Turn a compressed folder into a dense one", hxq::tools::add_decompress);
  add("generate", "Continue a prompt", hxq::tools::add_generate);
  add("chat", "Talk with a model", hxq::tools::add_chat);
  add("serve", "Serve a model over HTTP, as OpenAI's API", hxq::tools::add_serve);
  add("perplexity", "Measure how well a model predicts a text", hxq::tools::add_perplexity);
  add("report", "Write a page that shows a model's size, distance from the source and weights", hxq::tools::add_report);
  add("bench", "Measure speed against what this machine's memory allows", hxq::tools::add_bench);

  std::vector<std::string> arguments = arguments_of(argc, argv);
  const auto is_first = [&](const auto& verb) { return verb.first->get_name() == arguments[0]; };
  if (!arguments.empty() && !arguments[0].starts_with('-') && std::ranges::none_of(verbs, is_first)) {
    print_notice(arguments[0] + " is no verb (see hxq --help)");
    return kWrongUse;
  }
  std::ranges::reverse(arguments);  // as CLI11 takes them
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return show_help(app, error);
    print_notice(hxq::tools::usage_text(app, error));
    return kWrongUse;
  }
  for (const auto& [verb, run_verb] : verbs) {
    if (verb->parsed()) return run_verb();
  }
  return kWrongUse;
}

/// Memory for the way out once there is none: destructors of JSON take some. Never touched, so it costs none before.
std::atomic<void*> kept_memory = nullptr;

void keep_memory_for_the_way_out() {
  constexpr size_t kEnough = size_t{1} << 20;
  kept_memory = std::malloc(kEnough);
  std::set_new_handler([] {
    std::free(kept_memory.exchange(nullptr));  // by one of the threads that may be here at once
    throw std::bad_alloc();
  });
}

}  // namespace

int main(int argc, char** argv) {
  keep_memory_for_the_way_out();
  hxq::tools::set_up_process();
  try {
    return run(argc, argv);
  } catch (const hxq::tools::Interrupted&) {
    print_notice("interrupted");
    return kInterrupted + hxq::tools::interrupt_signal();
  } catch (const hxq::tools::ClosedPipe&) {
    std::signal(SIGPIPE, SIG_DFL);  // all is cleaned up: now as other commands do
    return std::raise(SIGPIPE);
  } catch (const std::bad_alloc&) {
    print_notice("out of memory");
    return kFailed;
  } catch (const hxq::tools::UsageError& error) {
    print_notice(error.what());
    return kWrongUse;
  } catch (const hxq::CompressedError& error) {
    print_notice(fmt::format("{}; `hxq decompress` makes the folder dense", error.what()));
    return kFailed;
  } catch (const hxq::UnknownArchitectureError& error) {
    print_notice(fmt::format("{} (`hxq compress` and the Python package serve others as well)", error.what()));
    return kFailed;
  } catch (const std::exception& error) {
    print_notice(error.what());
    return kFailed;
  }
}
