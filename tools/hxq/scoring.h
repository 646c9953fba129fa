#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "console.h"
#include "hxq/perplexity.h"

namespace hxq::tools {

/// A text that a model is scored with: the options that verbs share which do it.
struct ScoringArguments {
  std::string dir;
  std::string text;     ///< the file's name (-: standard input)
  std::string against;  ///< another model to compare with; empty: none
  PerplexityOptions options;
  ModelArguments model;

  /// --window, --stride, --windows and how the model runs; `--text` and the other model are the verb's.
  void add_to(CLI::App& app);

  /// Scores the text, with a progress bar. Where it was interrupted, with the windows so far.
  PerplexityResult run();
};

}  // namespace hxq::tools
