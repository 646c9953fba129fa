#include "serve/metrics.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

namespace hxq::serve {
namespace {

using Stage = Scheduler::Progress::Stage;

int64_t count_of(const Engine::Status& status, Stage stage) {
  return std::ranges::count(status.generations, stage, &Scheduler::Progress::stage);
}

/// Memory of this process that is in RAM, in bytes; 0 where the system does not say.
int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return file ? resident * sysconf(_SC_PAGESIZE) : 0;
}

/// Writes families of metrics.
class Writer {
 public:
  void family(std::string_view name, std::string_view type, std::string_view help) {
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  template <class Number>
  void value(std::string_view name, Number number) {
    text_ += fmt::format("{} {}\n", name, number);
  }
  template <class Number>
  void single(std::string_view name, std::string_view type, std::string_view help, Number number) {
    family(name, type, help);
    value(name, number);
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

}  // namespace

std::string metrics_text(const Engine::Status& status, const HttpCounts& counts, int64_t slots) {
  Writer out;
  const int64_t prefill = count_of(status, Stage::prefill), decode = count_of(status, Stage::decode);
  const int64_t embed = std::ssize(status.embeddings);
  out.single("hxq_slots", "gauge", "Generations that are run at once, at most.", slots);
  out.family("hxq_generations", "gauge", "Texts by what they do now.");
  out.value(R"(hxq_generations{stage="waiting"})", status.open - prefill - decode - embed);
  out.value(R"(hxq_generations{stage="prefill"})", prefill);
  out.value(R"(hxq_generations{stage="decode"})", decode);
  out.value(R"(hxq_generations{stage="embed"})", embed);
  out.family("hxq_generations_total", "counter", "Texts that have ended, by how.");
  out.value(R"(hxq_generations_total{end="completed"})", status.completed);
  out.value(R"(hxq_generations_total{end="cancelled"})", status.cancelled);
  out.value(R"(hxq_generations_total{end="failed"})", status.failed);
  out.single("hxq_prompt_tokens_total", "counter", "Tokens of the prompts of completed texts.", status.prompt_tokens);
  out.single("hxq_reused_tokens_total", "counter", "Of these, tokens that need not be run.", status.reused_tokens);
  out.single("hxq_new_tokens_total", "counter", "Tokens of completed texts.", status.new_tokens);
  out.family("hxq_step_seconds", "histogram", "How long steps took.");
  for (size_t i = 0; i < Engine::kStepSeconds.size(); ++i) {
    out.value(fmt::format(R"(hxq_step_seconds_bucket{{le="{}"}})", Engine::kStepSeconds[i]), status.steps_within[i]);
  }
  out.value(R"(hxq_step_seconds_bucket{le="+Inf"})", status.steps);
  out.value("hxq_step_seconds_sum", status.step_seconds);
  out.value("hxq_step_seconds_count", status.steps);
  out.family("hxq_requests_total", "counter", "Requests by endpoint and HTTP status.");
  for (const auto& [key, number] : counts.requests) {
    out.value(fmt::format(R"(hxq_requests_total{{endpoint="{}",status="{}"}})", key.first, key.second), number);
  }
  out.single("hxq_connections", "gauge", "Connections that are open.", counts.connections);
  out.single("hxq_streams", "gauge", "Streams that are open.", counts.streams);
  out.single("process_resident_memory_bytes", "gauge", "Memory of the process that is in RAM.", resident_bytes());
  return out.take();
}

std::string slots_text(const Engine::Status& status, int64_t slots) {
  nlohmann::ordered_json running = nlohmann::ordered_json::array();
  for (const Scheduler::Progress& progress : status.generations) {
    if (progress.stage != Stage::prefill && progress.stage != Stage::decode) continue;
    running.push_back({{"id", progress.id},
                       {"stage", progress.stage == Stage::prefill ? "prefill" : "decode"},
                       {"prompt_tokens", progress.prompt_tokens},
                       {"reused_tokens", progress.reused_tokens},
                       {"run_tokens", progress.run_tokens},
                       {"new_tokens", progress.new_tokens}});
  }
  const int64_t idle = slots - std::ssize(running);
  for (const Embedder::Progress& progress : status.embeddings) {
    running.push_back({{"id", progress.id},
                       {"stage", "embed"},
                       {"prompt_tokens", progress.tokens},
                       {"reused_tokens", 0},
                       {"run_tokens", progress.run_tokens},
                       {"new_tokens", 0}});
  }
  const int64_t waiting = status.open - std::ssize(running);
  const nlohmann::ordered_json json = {
      {"slots", slots}, {"idle", idle}, {"waiting", waiting}, {"running", std::move(running)}};
  return json.dump();
}

}  // namespace hxq::serve
