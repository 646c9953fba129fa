#include "hxq/compress.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "console.h"
#include "tables.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct CompressArguments {
  std::string source;
  std::string destination;
  CompressOptions options;
  std::vector<std::string> bits_for;
  bool dry_run = false;
  bool json = false;
};

const std::string kNothingCompressed = "no tensor is compressed: none that may be is large enough to get smaller\n";

int show_plan(const CompressArguments& arguments) {
  std::error_code fault;
  if (!arguments.options.force && std::filesystem::exists(arguments.destination, fault)) {
    print_notice(arguments.destination + ": exists already: without --dry-run this would be refused");
  }
  const std::vector<PlannedTensor> plan = plan_compression(arguments.source, arguments.options);
  if (arguments.json) {
    nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
    for (const PlannedTensor& tensor : plan) {
      tensors.push_back({{"name", tensor.name},
                         {"shape", tensor.shape},
                         {"dtype", tensor.dtype},
                         {"role", tensor.role},
                         {"codec", tensor.codec},
                         {"bits", tensor.bits},
                         {"group", tensor.group},
                         {"source_bytes", tensor.source_bytes}});
    }
    print(nlohmann::ordered_json{{"tensors", tensors}}.dump(2) + "\n");
    return 0;
  }
  Table table({{"tensor", Align::left},
               {"shape", Align::right},
               {"dtype", Align::left},
               {"role", Align::left},
               {"bytes", Align::right},
               {"codec", Align::left},
               {"bits", Align::right},
               {"group", Align::right}});
  for (const PlannedTensor& tensor : plan) {
    table.add({tensor.name, to_string(tensor.shape), tensor.dtype, tensor.role, fmt::format("{}", tensor.source_bytes),
               tensor.codec, tensor.bits == 0 ? "" : fmt::format("{}", tensor.bits),
               tensor.group == 0 ? "" : fmt::format("{}", tensor.group)});
  }
  const bool none = std::ranges::all_of(plan, [](const PlannedTensor& tensor) { return tensor.codec == "exact"; });
  print(table.text() + (none ? kNothingCompressed : ""));
  return 0;
}

void show_receipt(const Receipt& receipt, const std::string& destination) {
  Table table({{"tensor", Align::left},
               {"shape", Align::right},
               {"bits/weight", Align::right},
               {"SNR dB", Align::right},
               {"cosine", Align::right},
               {"max error", Align::right},
               {"outliers", Align::right}});
  int64_t exact_bytes = 0;
  for (const TensorReceipt& tensor : receipt.tensors) {
    if (tensor.codec == "exact") {
      exact_bytes += tensor.stored_bytes;
      continue;
    }
    table.add({tensor.name, to_string(tensor.shape), fmt::format("{:.3f}", tensor.bits_per_weight),
               tensor.snr_db ? fmt::format("{:.2f}", *tensor.snr_db) : "exact", fmt::format("{:.7f}", tensor.cosine),
               fmt::format("{:.2e}", tensor.max_error), fmt::format("{}", tensor.outliers)});
  }
  const ReceiptTotals& totals = receipt.totals;
  const bool none = totals.tensors_compressed == 0;
  print((none ? kNothingCompressed : table.text()) +
        fmt::format("and {} tensors stored exactly, {}\n", totals.tensors_exact, bytes_text(exact_bytes)) +
        fmt::format("\n{} parameters: {} tensors compressed, {} exact\n{} -> {} ({:.1f} % of the source, {:.1f} % of "
                    "f32, {:.3f} bits per weight); compressed tensors alone {:.1f} % of f32\n{:.2f} s, peak memory {}; "
                    "receipt in {}\n",
                    totals.parameters, totals.tensors_compressed, totals.tensors_exact, bytes_text(totals.source_bytes),
                    bytes_text(totals.stored_bytes), 100 * totals.ratio_to_source, 100 * totals.ratio_to_f32,
                    totals.bits_per_weight,
                    100.0 * static_cast<double>(totals.compressed_stored_bytes) /
                        static_cast<double>(std::max<int64_t>(1, totals.compressed_f32_bytes)),
                    totals.wall_seconds, bytes_text(totals.peak_memory_bytes),
                    (std::filesystem::path(destination) / kReceiptFile).string()));
}

/// "embedding=8"
void add_bits_for(const std::string& text, std::map<std::string, int>& bits_for) {
  const size_t equals = text.find('=');
  const std::string role = text.substr(0, equals), number = equals == text.npos ? "" : text.substr(equals + 1);
  int bits = 0;
  const auto [end, fault] = std::from_chars(number.data(), number.data() + number.size(), bits);
  if (role.empty() || fault != std::errc() || end != number.data() + number.size()) {
    throw UsageError("--bits-for " + not_as_expected("ROLE=N, such as embedding=8", text));
  }
  if (!bits_for.emplace(role, bits).second) throw UsageError("--bits-for names '" + role + "' twice");
}

int run(CompressArguments& arguments) {
  for (const std::string& text : arguments.bits_for) add_bits_for(text, arguments.options.bits_for);
  arguments.options.notice = print_notice;
  if (arguments.dry_run) return show_plan(arguments);
  Receipt receipt;
  {
    ProgressBar bar("compressing");
    arguments.options.progress = [&](std::string_view tensor, int64_t done, int64_t total) {
      bar.update(done, total, tensor);
    };
    receipt = compress(arguments.source, arguments.destination, arguments.options);
  }
  if (arguments.json) {
    print(to_json(receipt));
  } else {
    show_receipt(receipt, arguments.destination);
  }
  return 0;
}

}  // namespace

RunVerb add_compress(CLI::App& app) {
  auto arguments = std::make_shared<CompressArguments>();
  app.add_option("SRC", arguments->source, "Model folder: safetensors (F32, F16 or BF16) and, usually, config.json")
      ->required();
  add_new_folder(app, arguments->destination);
  app.add_option("--codec", arguments->options.codec, "How matrices are stored")
      ->default_str(codec_names().front())
      ->check(CLI::IsMember(codec_names()));
  app.add_option(
         "--profile", arguments->options.profile,
         "A codec and its bits by name: hxq has 8 bits and outliers; g8 to g3 a scale for each group of weights; "
         "hxq-segments and g8-uniform have levels that processors without AVX-512 take fast")
      ->check(CLI::IsMember(profile_names()));
  app.add_option("--bits", arguments->options.bits, "Bits of an index, in place of a profile: 3 to 8, with groups")
      ->check(whole_number<int>(3, 8));
  app.add_option("--group", arguments->options.group,
                 "Adjacent weights that share a scale: a multiple of 8 up to 65536 (default: the profile's)")
      ->check(whole_number<int64_t>(8, 65536));
  app.add_option("--bits-for", arguments->bits_for,
                 "ROLE=N: other bits for a kind of matrix: embedding, head or projection");
  app.add_option("--sidecar", arguments->options.sidecar_fraction, "Share of each tensor's weights kept exactly")
      ->capture_default_str()
      ->check(number("a number from 0 to 0.5", [](double share) { return share >= 0 && share <= 0.5; }));
  app.add_option_function<std::string>(
         "--low-rank",
         [arguments](const std::string& text) {
           if (text != "auto") arguments->options.low_rank = text == "off" ? 0 : std::stoi(text);
         },
         fmt::format("Low-rank term kept apart from each matrix: auto (where it pays), off, or its rank, 1 to {}",
                     kMaxLowRank))
      ->default_str("auto")
      ->check(CLI::IsMember({"auto", "off"}) | whole_number(1, kMaxLowRank));
  app.add_option("--keep", arguments->options.keep, "Store tensors whose names match this shell pattern exactly");
  app.add_option("--only", arguments->options.only, "Compress nothing but tensors that match this shell pattern");
  add_threads(app, arguments->options.threads, "Threads (0: all cores); the bytes written are the same");
  auto* dry_run =
      app.add_flag("--dry-run", arguments->dry_run, "Show what would be done to each tensor; write nothing");
  app.add_flag("-f,--force", arguments->options.force,
               "Replace DST if an earlier compression wrote it and nothing was added to it since");
  app.add_flag("--resume", arguments->options.resume,
               "Take up what a killed compression of SRC to DST has done; the bytes are those of an undisturbed one")
      ->excludes(dry_run);
  add_shard_size(app, arguments->options.max_shard_bytes);
  app.add_flag("--json", arguments->json, "Print the receipt (or the plan) as JSON");
  app.footer("Example: hxq compress models/wiki-mamba-7m build/mine");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
