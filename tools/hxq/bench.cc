#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "console.h"
#include "hxq/error.h"
#include "hxq/model.h"
#include "kernels/cpu_context.h"
#include "kernels/read_bandwidth.h"
#include "usage.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct BenchArguments {
  std::string dir;
  int64_t prompt_tokens = 512;
  int64_t decode_tokens = 32;
  int64_t sequences = 1;
  int64_t rounds = 7;
  ModelArguments model;
  bool json = false;
};

double seconds_of(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// A field of /proc/self/status in bytes: "RssAnon" (the process's own memory) or "RssFile" (mapped files).
int64_t memory_field(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

struct Figures {
  double open_seconds = 0;
  int64_t anonymous_bytes_open = 0;  ///< memory of the process itself once the model is open
  double prompt_rate = 0;            ///< tokens/s
  double decode_rate = 0;            ///< tokens/s, of all sequences
  /// Where the model is in the host's memory: bytes/s this machine reads, measured around each burst of decoding.
  std::optional<double> bandwidth = {};
  double decode_share = 0;          ///< median over bursts of steps/s * bytes_per_token / bandwidth
  int64_t anonymous_bytes_run = 0;  ///< after the prompts, before the buffer that bandwidth is measured with
  int64_t mapped_bytes_run = 0;
};

/// Some tokens of the vocabulary; which ones does not matter to speed.
std::vector<int32_t> some_tokens(int64_t count, int64_t vocab) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(i * 7919 % vocab));
  return tokens;
}

void measure_decode(const Model& model, const BenchArguments& arguments, Figures& figures) {
  const std::vector<int32_t> tokens = some_tokens(arguments.decode_tokens, model.info().vocab_size);
  const auto count = static_cast<size_t>(arguments.sequences);
  std::vector<Sequence> sequences;
  std::vector<Segment> segments;
  for (size_t i = 0; i < count; ++i) sequences.push_back(model.new_sequence());
  for (Sequence& sequence : sequences) {
    segments.push_back({.sequence = &sequence, .tokens = 1, .phase = Phase::decode, .logits = Logits::most_likely});
  }
  Workspace workspace = model.new_workspace();
  std::vector<int32_t> chosen(count);
  std::optional<kernels::ReadBandwidth> bandwidth;
  if (model.info().on_host) bandwidth.emplace(model.info().threads, kernels::supported_targets().back());
  const auto measure_bandwidth = [&] { return bandwidth ? bandwidth->measure(3) : 0.0; };
  const auto burst = [&] {
    for (Sequence& sequence : sequences) sequence.reset();
    for (const int32_t token : tokens) {
      model.forward(std::vector<int32_t>(count, token), segments, workspace, {}, chosen);
    }
  };
  burst();  // maps the pages and warms the caches
  std::vector<double> rates, shares, reads;
  double before = measure_bandwidth();
  for (int64_t round = 0; round < arguments.rounds; ++round) {
    check_interrupt();
    const double steps = static_cast<double>(tokens.size()) / seconds_of(burst);
    const double after = measure_bandwidth();
    const double read = (before + after) / 2;
    before = after;
    rates.push_back(steps * static_cast<double>(count));
    reads.push_back(read);
    if (bandwidth) shares.push_back(steps * static_cast<double>(model.info().bytes_per_token) / read);
  }
  figures.decode_rate = median(rates);
  if (!bandwidth) return;
  figures.bandwidth = median(reads);
  figures.decode_share = median(shares);
}

void measure_prompt(const Model& model, const BenchArguments& arguments, Figures& figures) {
  const std::vector<int32_t> tokens = some_tokens(arguments.prompt_tokens, model.info().vocab_size);
  std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
  Sequence sequence = model.new_sequence();
  Workspace workspace = model.new_workspace();
  const auto prompt = [&] {
    sequence.reset();
    model.forward(tokens, sequence, Phase::prefill, Logits::last, workspace, logits);
  };
  prompt();  // maps the pages and takes the memory
  std::vector<double> rates;
  for (int64_t round = 0; round < arguments.rounds; ++round) {
    check_interrupt();
    rates.push_back(static_cast<double>(tokens.size()) / seconds_of(prompt));
  }
  figures.prompt_rate = median(rates);
}

std::string json_text(const ModelInfo& info, const Figures& figures, const BenchArguments& arguments) {
  nlohmann::ordered_json json = {{"model_type", info.model_type},
                                 {"parameters", info.parameters},
                                 {"compressed_matrices", info.compressed_matrices},
                                 {"dense_matrices", info.dense_matrices},
                                 {"device", info.device},
                                 {"threads", info.threads},
                                 {"target", name_of(info.target)},
                                 {"precision", name_of(info.precision)},
                                 {"open_seconds", figures.open_seconds},
                                 {"anonymous_bytes_open", figures.anonymous_bytes_open},
                                 {"anonymous_bytes_run", figures.anonymous_bytes_run},
                                 {"mapped_bytes_run", figures.mapped_bytes_run},
                                 {"prompt_tokens_per_second", figures.prompt_rate},
                                 {"sequences", arguments.sequences},
                                 {"decode_tokens_per_second", figures.decode_rate},
                                 {"bytes_per_token", info.bytes_per_token}};
  if (figures.bandwidth) {
    json["read_bandwidth"] = *figures.bandwidth;
    json["decode_share_of_bandwidth"] = figures.decode_share;
  }
  return json.dump(2) + "\n";
}

std::string report_text(const ModelInfo& info, const Figures& figures, const BenchArguments& arguments) {
  return fmt::format(
      "{}: {} parameters, {} compressed and {} dense matrices; {}\n"
      "opened in {:.1f} ms; the process's own memory {} then, {} after the runs, {} mapped\n"
      "prompt  {:8.1f} tokens/s ({} tokens)\n"
      "decode  {:8.1f} tokens/s of {}: {} per step{}\n",
      info.model_type, info.parameters, info.compressed_matrices, info.dense_matrices,
      info.on_host ? fmt::format("{} threads, {}", info.threads, name_of(info.target)) : info.device,
      1e3 * figures.open_seconds, bytes_text(figures.anonymous_bytes_open), bytes_text(figures.anonymous_bytes_run),
      bytes_text(figures.mapped_bytes_run), figures.prompt_rate, arguments.prompt_tokens, figures.decode_rate,
      arguments.sequences == 1 ? "1 sequence" : fmt::format("{} sequences", arguments.sequences),
      bytes_text(info.bytes_per_token),
      figures.bandwidth ? fmt::format(", {:.0f} % of the {:.1f} GB/s this machine reads", 100 * figures.decode_share,
                                      *figures.bandwidth / 1e9)
                        : "");
}

int run(const BenchArguments& arguments) {
  Figures figures;
  std::unique_ptr<Model> model;
  figures.open_seconds = seconds_of([&] { model = std::make_unique<Model>(arguments.model.open(arguments.dir)); });
  figures.anonymous_bytes_open = memory_field("RssAnon");
  measure_prompt(*model, arguments, figures);
  figures.anonymous_bytes_run = memory_field("RssAnon");
  figures.mapped_bytes_run = memory_field("RssFile");
  measure_decode(*model, arguments, figures);
  print(arguments.json ? json_text(model->info(), figures, arguments) : report_text(model->info(), figures, arguments));
  return 0;
}

}  // namespace

RunVerb add_bench(CLI::App& app) {
  auto arguments = std::make_shared<BenchArguments>();
  app.add_option("DIR", arguments->dir, "Model folder, compressed or dense")->required();
  app.add_option("--prompt-tokens", arguments->prompt_tokens, "Length of the prompt that is timed")
      ->capture_default_str()
      ->check(whole_number(1, 1 << 20));
  app.add_option("--decode-tokens", arguments->decode_tokens, "Tokens decoded in a burst")
      ->capture_default_str()
      ->check(whole_number(1, 1 << 20));
  app.add_option("--sequences", arguments->sequences, "Sequences that are decoded together")
      ->capture_default_str()
      ->check(whole_number(1, 1024));
  app.add_option("--rounds", arguments->rounds, "Times each is repeated; medians are printed")
      ->capture_default_str()
      ->check(whole_number(1, 1000));
  app.add_flag("--json", arguments->json, "Print JSON");
  arguments->model.add_to(app);
  app.footer(
      "A decoded token is counted with the choice of the likeliest next one, as greedy generation takes it.\n"
      "Read bandwidth is measured right before and after each burst of decoding, because it drifts.\n"
      "Example: hxq bench build/mine");
  return [arguments] { return run(*arguments); };
}

}  // namespace hxq::tools
