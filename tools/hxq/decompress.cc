#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "console.h"
#include "generation_arguments.h"
#include "hxq/compress.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct DecompressArguments {
  std::string source;
  std::string destination;
  DecompressOptions options;
  bool json = false;
};

int run(DecompressArguments& arguments) {
  arguments.options.notice = print_notice;
  int64_t bytes = 0;
  {
    ProgressBar bar("decompressing");
    arguments.options.progress = [&](std::string_view tensor, int64_t done, int64_t total) {
      bar.update(done, total, tensor);
    };
    bytes = decompress(arguments.source, arguments.destination, arguments.options);
  }
  if (arguments.json) {
    print(dumped({{"destination", arguments.destination}, {"bytes", bytes}}, -1));
  } else {
    print(fmt::format("{}: {} of tensors\n", arguments.destination, bytes_text(bytes)));
  }
  return 0;
}

}  // namespace

RunVerb add_decompress(CLI::App& app) {
  auto arguments = std::make_shared<DecompressArguments>();
  app.add_option("DIR", arguments->source, "Compressed model folder (HXQ or .cdnav3)")->required();
  add_new_folder(app, arguments->destination);
  add_dtype(app, "--dtype", arguments->options.dtype, {DType::f32, DType::f16, DType::bf16},
            "Type of the decoded matrices; f32 is exact");
  add_shard_size(app, arguments->options.max_shard_bytes);
  app.add_flag("--json", arguments->json, "Print JSON");
  app.footer("Example: hxq decompress build/mine build/mine-dense");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
