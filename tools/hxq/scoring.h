#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "console.h"
#include "hxq/model.h"
#include "hxq/perplexity.h"

namespace hxq::tools {

/// What is opened for a score.
struct ScoredText {
  Model model;
  std::optional<Model> against = {};  ///< another model to compare with
  std::vector<int32_t> tokens = {};   ///< the text's
};

/// A text that a model is scored with: the options that verbs share which do it.
struct ScoringArguments {
  std::string dir;
  std::string text;     ///< the file's name (-: standard input)
  std::string against;  ///< another model to compare with; empty: none
  PerplexityOptions options;
  ModelArguments model;

  /// --window, --stride, --windows and how the model runs; `--text` and the other model are the verb's.
  void add_to(CLI::App& app);

  /// The models and the text. Throws `Error` or `UsageError` where they cannot be scored with these options.
  ScoredText open() const;

  /// Scores the text, with a progress bar. Where it was interrupted, with the windows so far.
  PerplexityResult measure(const ScoredText& opened) const;
};

}  // namespace hxq::tools
