#include "hxq/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string_view>

#include "console.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct VerifyArguments {
  std::string dir;
  std::string source;
  bool json = false;
};

/// Lines of problems that are printed.
constexpr size_t kShown = 10;

std::string counted(int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

void show_problems(const VerifyResult& result) {
  const auto shown = std::span(result.problems).first(std::min(kShown, result.problems.size()));
  for (const Problem& problem : shown) print_notice(problem.message);
  if (const size_t rest = result.problems.size() - shown.size(); rest > 0) {
    print_notice(fmt::format("and {} more; --json lists all", rest));
  }
}

std::string snr_text(double snr_db) { return std::isinf(snr_db) ? "exact" : fmt::format("{:.2f} dB", snr_db); }

/// What was checked, what was not, and what came of it.
std::string summary(const std::string& dir, const VerifyResult& result) {
  std::string text = fmt::format("{}: {}, ", dir, counted(result.tensors, "tensor"));
  text += result.compressed == 0 ? "none compressed"
                                 : fmt::format("{} compressed; everything stored of {} checked", result.compressed,
                                               result.matrices_checked);
  text += result.has_receipt ? fmt::format("; {} hashes checked", result.hashes_checked)
                             : "; there is no receipt, so no hash was checked";
  if (result.has_source) {
    text += fmt::format("; {} fidelities measured and {} exact tensors compared with the source",
                        result.fidelities_checked, result.exact_compared);
    if (result.exact_converted > 0) {
      text += fmt::format(" ({} in another dtype, values equal)", result.exact_converted);
    }
  } else {
    text += "; not compared with a source";
  }
  if (result.worst_snr_db) {
    text += fmt::format("; SNR: worst {} ({}), median {}", snr_text(*result.worst_snr_db), result.worst_tensor,
                        snr_text(*result.median_snr_db));
  }
  if (!result.ok()) return text + "; " + counted(std::ssize(result.problems), "problem");
  return text + (result.has_receipt ? "; all is well" : "; no fault found in what was checked");
}

int run(const VerifyArguments& arguments) {
  VerifyResult result;
  {
    ProgressBar bar("verifying");
    VerifyOptions options{.source = arguments.source};
    options.progress = [&](std::string_view tensor, int64_t done, int64_t total) { bar.update(done, total, tensor); };
    result = verify(arguments.dir, options);
  }
  if (arguments.json) {
    print(to_json(result));
    return result.ok() ? 0 : 1;
  }
  show_problems(result);
  print(summary(arguments.dir, result) + "\n");
  return result.ok() ? 0 : 1;
}

}  // namespace

RunVerb add_verify(CLI::App& app) {
  auto arguments = std::make_shared<VerifyArguments>();
  app.add_option("DIR", arguments->dir, "Compressed model folder")->required();
  add_path(app, "--source", arguments->source,
           "The dense folder it was made from: also measure the distance, and check every fidelity figure");
  app.add_flag("--json", arguments->json, "Print JSON");
  app.footer("Example: hxq verify build/mine --source models/wiki-mamba-7m");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
