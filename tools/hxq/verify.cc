#include "hxq/verify.h"

#include <fmt/format.h>

#include <memory>

#include "console.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct Arguments {
  std::string dir;
  std::string source;
  bool json = false;
};

int run(const Arguments& arguments) {
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
  for (const Problem& problem : result.problems) fmt::print(stderr, "hxq: {}\n", problem.message);
  print(fmt::format("{}: {} tensors, {} compressed; {} hashes and {} fidelities checked; {}\n", arguments.dir,
                    result.tensors, result.compressed, result.hashes_checked, result.fidelities_checked,
                    result.ok() ? (result.has_receipt ? "all is well" : "all is well, but there is no receipt")
                                : fmt::format("{} problems", result.problems.size())));
  return result.ok() ? 0 : 1;
}

}  // namespace

RunVerb add_verify(CLI::App& app) {
  auto arguments = std::make_shared<Arguments>();
  app.add_option("DIR", arguments->dir, "Compressed model folder")->required();
  app.add_option("--source", arguments->source, "The dense folder it was made from: also check every fidelity figure");
  app.add_flag("--json", arguments->json, "Print JSON");
  app.footer("Example: hxq verify build/wiki-mamba-7m-hxq --source models/wiki-mamba-7m");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
