#include "hxq/report.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "console.h"
#include "hxq/error.h"
#include "hxq/utf8.h"
#include "scoring.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

namespace fs = std::filesystem;

struct ReportArguments {
  std::string source;
  std::string output;
  ScoringArguments scoring;  ///< its folder is the verb's
  bool force = false;
};

/// The folder's or the file's name, as the page is to call the model.
std::string name_of(const std::string& dir) {
  const fs::path path = fs::weakly_canonical(dir);
  return path.filename().string();
}

/// DIR.html, beside DIR.
fs::path default_output(const std::string& dir) {
  fs::path path = fs::path(dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path.empty() || path == "." || path.filename() == "..") path = fs::weakly_canonical(dir);
  return path += ".html";
}

VerifyResult verified(const ReportArguments& arguments) {
  ProgressBar bar("verifying");
  VerifyOptions options{.source = arguments.source};
  options.progress = [&](std::string_view tensor, int64_t done, int64_t total) { bar.update(done, total, tensor); };
  VerifyResult result = verify(arguments.scoring.dir, options);
  if (!result.ok()) {
    const size_t rest = result.problems.size() - 1;
    throw Error(result.problems.front().message +
                (rest > 0 ? fmt::format(" (and {} more: hxq verify lists them)", rest) : ""));
  }
  return result;
}

std::vector<WeightHistogram> counted(const ReportArguments& arguments, const Inspection& inspection) {
  ProgressBar bar("counting weights");
  HistogramOptions options{.source = arguments.source, .threads = arguments.scoring.model.threads};
  options.progress = [&](std::string_view tensor, int64_t done, int64_t total) { bar.update(done, total, tensor); };
  return weight_histograms(arguments.scoring.dir, inspection, options);
}

int run(ReportArguments& arguments) {
  const std::string& dir = arguments.scoring.dir;
  const bool to_standard_output = arguments.output == "-";
  if (to_standard_output && arguments.force) throw UsageError("--force has no effect on standard output (-o -)");
  const fs::path output = arguments.output.empty() ? default_output(dir) : fs::path(arguments.output);
  Report report{.name = name_of(dir), .inspection = inspect(dir)};
  if (!to_standard_output) check_report_file(output, arguments.force);
  std::optional<ScoredText> text;  // what is wrong with it is said before long work
  if (!arguments.scoring.text.empty()) {
    arguments.scoring.against = arguments.source;
    text.emplace(arguments.scoring.open());
  }
  if (!arguments.source.empty()) report.verification = verified(arguments);
  report.histograms = counted(arguments, report.inspection);
  if (text) {
    report.scores = arguments.scoring.measure(*text);
    if (report.scores->interrupted) check_interrupt();
    report.text = fs::path(name_of_text(arguments.scoring.text)).filename().string();
  }
  if (to_standard_output) {
    print(report_page(report));
    return 0;
  }
  write_report(report, output, arguments.force);
  print(fmt::format("{}: {} tensors, {}\n", output.string(), report.inspection.tensors.size(),
                    bytes_text(static_cast<int64_t>(fs::file_size(output)))));
  return 0;
}

}  // namespace

RunVerb add_report(CLI::App& app) {
  auto arguments = std::make_shared<ReportArguments>();
  ScoringArguments& scoring = arguments->scoring;
  app.add_option("DIR", scoring.dir, "Model folder (dense, HXQ or .cdnav3) or a .safetensors file")->required();
  add_path(app, "-o,--output", arguments->output, "The page to write (-: standard output; default: DIR.html)");
  add_path(app, "--source", arguments->source,
           "The dense folder it was made from: verify against it, and show its weights");
  CLI::Option* text = add_path(app, "--text", scoring.text,
                               "Text file (-: standard input) to score: KL by window with --source, else the loss");
  app.add_flag("-f,--force", arguments->force, "Replace a page that an earlier report has written");
  scoring.add_to(app);
  for (const char* option : {"--window", "--stride", "--windows", "--precision", "--kv-cache", "--device"}) {
    app.get_option(option)->needs(text);
  }
  app.footer("Example: hxq report build/mine --source models/wiki-mamba-7m");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
