#include "hxq/perplexity.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "console.h"
#include "hxq/error.h"
#include "hxq/tokenizer.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct Arguments {
  std::string dir;
  std::string text;
  std::string against;
  PerplexityOptions options;
  ModelArguments model;
  bool json = false;
};

/// How much larger the perplexity is than the other model's.
double delta_percent(const PerplexityResult& result) {
  return 100 * (result.perplexity / *result.against_perplexity - 1);
}

std::string json_text(const PerplexityResult& result) {
  nlohmann::ordered_json windows = nlohmann::ordered_json::array();
  for (const WindowScore& window : result.windows) {
    windows.push_back({{"begin", window.begin}, {"end", window.end}, {"scored", window.scored}, {"nll", window.nll}});
    if (window.against_nll) windows.back()["against_nll"] = *window.against_nll;
  }
  nlohmann::ordered_json json = {
      {"perplexity", result.perplexity}, {"nll", result.nll}, {"tokens_scored", result.tokens_scored}};
  if (result.against_perplexity) {
    json["against_perplexity"] = *result.against_perplexity;
    json["delta_percent"] = delta_percent(result);
    json["mean_kl"] = *result.mean_kl;
    json["same_top"] = *result.same_top;
  }
  json["interrupted"] = result.interrupted;
  json["windows"] = std::move(windows);
  return json.dump(2) + "\n";
}

std::string report_text(const PerplexityResult& result, const std::string& against) {
  std::string text = fmt::format("perplexity {:.4f} (nll {:.6f}) over {} tokens in {} windows{}\n", result.perplexity,
                                 result.nll, result.tokens_scored, result.windows.size(),
                                 result.interrupted ? ", interrupted before the rest" : "");
  if (result.against_perplexity) {
    text += fmt::format("against {}: perplexity {:.4f}, delta {:+.3f} %; mean KL {:.6f}, same top token {:.2f} %\n",
                        against, *result.against_perplexity, delta_percent(result), *result.mean_kl,
                        100 * *result.same_top);
  }
  return text;
}

/// Refuses what the library would, by the names of options and files.
void check(const Arguments& arguments, const Model& model, const std::optional<Model>& against, size_t tokens) {
  const PerplexityOptions& options = arguments.options;
  for (const auto& [dir, info] : {std::pair{arguments.dir, model.info()},
                                  std::pair{arguments.against, against ? against->info() : ModelInfo()}}) {
    if (info.context_length > 0 && options.window > info.context_length) {
      throw UsageError(
          fmt::format("--window {}: the context of {} holds {}", options.window, dir, info.context_length));
    }
  }
  if (against && against->info().vocab_size != model.info().vocab_size) {
    throw Error(fmt::format("has a vocabulary of {} tokens, {} one of {}", against->info().vocab_size, arguments.dir,
                            model.info().vocab_size),
                {.file = arguments.against});
  }
  if (tokens < 2) {
    throw Error(fmt::format("has {} token{}, perplexity needs at least 2", tokens, tokens == 1 ? "" : "s"),
                {.file = name_of_text(arguments.text)});
  }
}

PerplexityResult measure(Arguments& arguments, const Model& model, const std::vector<int32_t>& tokens) {
  ProgressBar bar("scoring");
  arguments.options.progress = [&](int64_t done, int64_t total) {
    bar.draw(done, total, fmt::format("window {} of {}", done, total));
  };
  arguments.options.interrupted = is_interrupted;
  try {
    return perplexity(model, tokens, arguments.options);
  } catch (const Error& error) {
    throw Error(error.what(), {.file = arguments.dir});
  }
}

int run(Arguments& arguments) {
  const Model model = Model::open(arguments.dir, arguments.model.options());
  std::optional<Model> against;
  if (!arguments.against.empty()) against.emplace(Model::open(arguments.against, arguments.model.options()));
  const std::vector<int32_t> tokens = Tokenizer::load(arguments.dir).encode(read_text(arguments.text));
  check(arguments, model, against, tokens.size());
  arguments.options.against = against ? &*against : nullptr;
  const auto start = std::chrono::steady_clock::now();
  const PerplexityResult result = measure(arguments, model, tokens);
  if (result.windows.empty()) check_interrupt();
  print(arguments.json ? json_text(result) : report_text(result, arguments.against));
  if (result.interrupted) check_interrupt();
  if (arguments.json) return 0;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  print_error(fmt::format("{:.1f} s\n", seconds.count()));
  return 0;
}

}  // namespace

RunVerb add_perplexity(CLI::App& app) {
  auto arguments = std::make_shared<Arguments>();
  PerplexityOptions& options = arguments->options;
  app.add_option("DIR", arguments->dir, "Model folder, compressed or dense")->required();
  app.add_option("--text", arguments->text, "Text file (-: standard input)")->required();
  app.add_option("--window", options.window, "Tokens a window holds (default: 2048, or the models' context if less)")
      ->check(whole_number(2));
  app.add_option("--stride", options.stride,
                 "Tokens from one window's start to the next (default: a quarter of the window)")
      ->check(whole_number(1));
  app.add_option("--windows", options.max_windows, "Score only the first N windows (0: all)")
      ->capture_default_str()
      ->check(whole_number(0));
  app.add_option("--against", arguments->against, "Another model folder to compare with: mean KL and same top token");
  app.add_flag("--json", arguments->json, "Print JSON, every window included");
  arguments->model.add_to(app);
  app.footer(
      "Example: hxq perplexity build/wiki-mamba-7m-hxq --text models/wikitext2-excerpt.txt --against "
      "models/wiki-mamba-7m");
  app.final_callback([&options] {
    if (options.window > 0 && options.stride > options.window) {
      throw CLI::ValidationError("--stride", fmt::format("expected a whole number from 1 to the window's {}, found {}",
                                                         options.window, options.stride));
    }
  });
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
