#include "hxq/perplexity.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "console.h"
#include "scoring.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct PerplexityArguments {
  ScoringArguments scoring;
  bool json = false;
};

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

int run(PerplexityArguments& arguments) {
  const auto start = std::chrono::steady_clock::now();
  const PerplexityResult result = arguments.scoring.measure(arguments.scoring.open());
  if (result.windows.empty()) check_interrupt();
  print(arguments.json ? to_json(result) : report_text(result, arguments.scoring.against));
  if (result.interrupted) check_interrupt();
  if (arguments.json) return 0;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  print_error(fmt::format("{:.1f} s\n", seconds.count()));
  return 0;
}

}  // namespace

RunVerb add_perplexity(CLI::App& app) {
  auto arguments = std::make_shared<PerplexityArguments>();
  ScoringArguments& scoring = arguments->scoring;
  app.add_option("DIR", scoring.dir, "Model folder, compressed or dense")->required();
  add_path(app, "--text", scoring.text, "Text file (-: standard input)")->required();
  add_path(app, "--against", scoring.against, "Another model folder to compare with: mean KL and same top token");
  app.add_flag("--json", arguments->json, "Print JSON, every window included");
  scoring.add_to(app);
  app.footer(
      "Example: hxq perplexity build/mine --text models/wikitext2-excerpt.txt "
      "--against models/wiki-mamba-7m --windows 4");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
