#include "scoring.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "hxq/error.h"
#include "hxq/tokenizer.h"
#include "usage.h"

namespace hxq::tools {
namespace {

/// Refuses what the library would, by the names of options and files.
void check(const ScoringArguments& arguments, const ScoredText& opened) {
  const auto& [model, against, tokens] = opened;
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
  if (tokens.size() < 2) {
    throw Error(
        fmt::format("has {} token{}, perplexity needs at least 2", tokens.size(), tokens.size() == 1 ? "" : "s"),
        {.file = name_of_text(arguments.text)});
  }
}

}  // namespace

void ScoringArguments::add_to(CLI::App& app) {
  app.add_option("--window", options.window, "Tokens a window holds (default: 2048, or the models' context if less)")
      ->check(whole_number(2));
  app.add_option("--stride", options.stride,
                 "Tokens from one window's start to the next (default: a quarter of the window)")
      ->check(whole_number(1));
  app.add_option("--windows", options.max_windows, "Score only the first N windows (0: all)")
      ->capture_default_str()
      ->check(whole_number(0));
  model.add_to(app);
  app.final_callback([this] {
    if (options.window > 0 && options.stride > options.window) {
      throw CLI::ValidationError("--stride", fmt::format("expected a whole number from 1 to the window's {}, found {}",
                                                         options.window, options.stride));
    }
  });
}

ScoredText ScoringArguments::open() const {
  ScoredText opened{.model = model.open(dir)};
  if (!against.empty()) opened.against.emplace(model.open(against));
  opened.tokens = Tokenizer::load(dir).encode(read_text(text));
  check(*this, opened);
  return opened;
}

PerplexityResult ScoringArguments::measure(const ScoredText& opened) const {
  PerplexityOptions with = options;
  ProgressBar bar("scoring");
  with.against = opened.against ? &*opened.against : nullptr;
  with.progress = [&](int64_t done, int64_t total) {
    bar.draw(done, total, fmt::format("window {} of {}", done, total));
  };
  with.interrupted = is_interrupted;
  try {
    return perplexity(opened.model, opened.tokens, with);
  } catch (const Error& error) {
    throw Error(error.what(), {.file = dir});
  }
}

}  // namespace hxq::tools
