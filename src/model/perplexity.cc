#include "hxq/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hxq/error.h"
#include "kernels/team.h"

namespace hxq {
namespace {

/// Tokens whose logits are held at a time.
constexpr int64_t kChunk = 256;

constexpr int64_t kDefaultWindow = 2048;

struct Scores {
  double nll = 0;
  double reference_nll = 0;
  double kl = 0;
  int64_t same_top = 0;

  Scores& operator+=(const Scores& other) {
    nll += other.nll;
    reference_nll += other.reference_nll;
    kl += other.kl;
    same_top += other.same_top;
    return *this;
  }
};

/// Log of the sum of exponentials, in double.
double log_sum_exp(std::span<const float> logits, float largest) {
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - largest));
  return static_cast<double>(largest) + std::log(sum);
}

Scores score(std::span<const float> logits, std::span<const float> reference, int32_t target) {
  const auto top = std::ranges::max_element(logits);
  const double normaliser = log_sum_exp(logits, *top);
  Scores scores;
  scores.nll = normaliser - static_cast<double>(logits[static_cast<size_t>(target)]);
  if (reference.empty()) return scores;

  const auto reference_top = std::ranges::max_element(reference);
  const double reference_normaliser = log_sum_exp(reference, *reference_top);
  scores.reference_nll = reference_normaliser - static_cast<double>(reference[static_cast<size_t>(target)]);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double log_p = static_cast<double>(reference[i]) - reference_normaliser;
    const double log_q = static_cast<double>(logits[i]) - normaliser;
    scores.kl += static_cast<double>(std::exp(static_cast<float>(log_p))) * (log_p - log_q);
  }
  scores.same_top = (top - logits.begin()) == (reference_top - reference.begin());
  return scores;
}

/// A model run over one window after the other.
class Runner {
 public:
  explicit Runner(const Model& model)
      : model_(model),
        sequence_(model.new_sequence()),
        workspace_(model.new_workspace()),
        logits_(workspace_.logits(static_cast<size_t>(kChunk * model.info().vocab_size))) {}

  /// Begins a window of `length` tokens with the first of them.
  void start(std::span<const int32_t> unscored, int64_t length) {
    sequence_.reset();
    length_ = length;
    forward(unscored, Logits::none, {});
  }

  /// Logits [tokens.size(), vocab], valid until the next call.
  std::span<const float> run(std::span<const int32_t> tokens) {
    const auto size = tokens.size() * static_cast<size_t>(model_.info().vocab_size);
    forward(tokens, Logits::all, logits_.first(size));
    return logits_.first(size);
  }

 private:
  void forward(std::span<const int32_t> tokens, Logits wanted, std::span<float> logits) {
    const Segment segment{.sequence = &sequence_, .tokens = std::ssize(tokens), .logits = wanted, .end = length_};
    model_.forward(tokens, {&segment, 1}, workspace_, logits);
  }

  const Model& model_;
  Sequence sequence_;
  Workspace workspace_;
  int64_t length_ = 0;
  std::span<float> logits_;
};

class Evaluation {
 public:
  Evaluation(const Model& model, const PerplexityOptions& options)
      : vocab_(model.info().vocab_size),
        threads_(model.info().threads),
        interrupted_(options.interrupted),
        model_(model) {
    if (options.against) reference_.emplace(*options.against);
  }

  /// Scores the last `scored` tokens of `window`; nothing when interrupted.
  std::optional<Scores> run(std::span<const int32_t> window, int64_t scored) {
    // The logits at a position predict the token after it.
    const auto first = static_cast<int64_t>(window.size()) - scored - 1;
    const auto inputs = window.first(window.size() - 1);
    model_.start(inputs.first(static_cast<size_t>(first)), std::ssize(inputs));
    if (reference_) reference_->start(inputs.first(static_cast<size_t>(first)), std::ssize(inputs));
    Scores total;
    for (int64_t begin = first; begin < static_cast<int64_t>(inputs.size()); begin += kChunk) {
      if (interrupted_ && interrupted_()) return std::nullopt;
      const int64_t count = std::min(kChunk, static_cast<int64_t>(inputs.size()) - begin);
      const auto chunk = inputs.subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
      total += score_chunk(chunk, window.subspan(static_cast<size_t>(begin) + 1, static_cast<size_t>(count)));
    }
    return total;
  }

 private:
  Scores score_chunk(std::span<const int32_t> inputs, std::span<const int32_t> targets) {
    const std::span<const float> logits = model_.run(inputs);
    const std::span<const float> reference = reference_ ? reference_->run(inputs) : std::span<const float>();
    per_token_.resize(targets.size());
    run_team(threads_, [&](const Team& team) {
      const Range share = team.share(static_cast<int64_t>(targets.size()));
      for (int64_t t = share.begin; t < share.end; ++t) {
        const auto at = static_cast<size_t>(t * vocab_);
        const auto vocab = static_cast<size_t>(vocab_);
        per_token_[static_cast<size_t>(t)] =
            score(logits.subspan(at, vocab), reference.empty() ? reference : reference.subspan(at, vocab),
                  targets[static_cast<size_t>(t)]);
      }
    });
    // Summed in order, so that the result does not depend on the number of threads.
    Scores total;
    for (const Scores& token : per_token_) total += token;
    return total;
  }

  int64_t vocab_;
  int threads_;
  const std::function<bool()>& interrupted_;
  Runner model_;
  std::optional<Runner> reference_;
  std::vector<Scores> per_token_;
};

/// Tokens that a sequence may have in both models; 0: no limit.
int64_t context_length(const Model& model, const Model* against) {
  const int64_t own = model.info().context_length;
  const int64_t other = against ? against->info().context_length : 0;
  return own > 0 && other > 0 ? std::min(own, other) : std::max(own, other);
}

PerplexityOptions with_defaults(PerplexityOptions options, int64_t context) {
  if (options.window == 0) options.window = context > 0 ? std::min(context, kDefaultWindow) : kDefaultWindow;
  if (options.stride == 0) options.stride = std::max(options.window / 4, int64_t{1});
  return options;
}

void check(const Model& model, std::span<const int32_t> tokens, const PerplexityOptions& options, int64_t context) {
  if (tokens.size() < 2) throw Error(fmt::format("{} tokens: perplexity needs at least 2", tokens.size()));
  // A token is looked up among the logits before the model itself gets to see it.
  const int64_t vocab = model.info().vocab_size;
  const auto foreign = std::ranges::find_if(tokens, [&](int32_t token) { return token < 0 || token >= vocab; });
  if (foreign != tokens.end()) throw Error(fmt::format("token {} is outside the vocabulary of {}", *foreign, vocab));
  if (options.window < 2) throw Error(fmt::format("window of {} tokens: expected at least 2", options.window));
  if (context > 0 && options.window > context) {
    throw Error(fmt::format("window of {} tokens: the context holds {}", options.window, context));
  }
  if (options.stride < 1 || options.stride > options.window) {
    throw Error(fmt::format("stride {}: expected 1 to the window's {}", options.stride, options.window));
  }
  if (options.max_windows < 0) throw Error(fmt::format("{} windows: expected 0 (all) or more", options.max_windows));
  if (options.against && options.against->info().vocab_size != model.info().vocab_size) {
    throw Error(fmt::format("vocabularies differ: {} tokens and {}", model.info().vocab_size,
                            options.against->info().vocab_size));
  }
}

std::vector<WindowScore> plan_windows(int64_t tokens, const PerplexityOptions& options) {
  std::vector<WindowScore> windows;
  int64_t scored_to = 1;  // the first token has no prediction
  for (int64_t begin = 0; scored_to < tokens; begin += options.stride) {
    const int64_t end = std::min(begin + options.window, tokens);
    // A window's own first token has no prediction either; only windows that do not overlap lose one by it.
    const int64_t scored = std::min(end - scored_to, end - begin - 1);
    if (scored > 0) windows.push_back({.begin = begin, .end = end, .scored = scored});
    scored_to = end;
    if (static_cast<int64_t>(windows.size()) == options.max_windows) break;
  }
  return windows;
}

}  // namespace

PerplexityResult perplexity(const Model& model, std::span<const int32_t> tokens, const PerplexityOptions& given) {
  const int64_t context = context_length(model, given.against);
  const PerplexityOptions options = with_defaults(given, context);
  check(model, tokens, options, context);
  PerplexityResult result;
  result.windows = plan_windows(static_cast<int64_t>(tokens.size()), options);
  Evaluation evaluation(model, options);
  Scores total;
  const auto window_count = static_cast<int64_t>(result.windows.size());
  int64_t done = 0;
  for (WindowScore& window : result.windows) {
    const auto span = tokens.subspan(static_cast<size_t>(window.begin), static_cast<size_t>(window.end - window.begin));
    const std::optional<Scores> scores = evaluation.run(span, window.scored);
    result.interrupted = !scores;
    if (!scores) break;
    if (!std::isfinite(scores->nll) || !std::isfinite(scores->reference_nll)) {
      throw Error(fmt::format("tokens {} to {}: the model's logits are not finite", window.begin, window.end));
    }
    window.nll = scores->nll;
    if (options.against) {
      window.against_nll = scores->reference_nll;
      window.kl = scores->kl;
    }
    total += *scores;
    result.tokens_scored += window.scored;
    ++done;
    if (options.progress) options.progress(done, window_count);
  }
  result.windows.resize(static_cast<size_t>(done));
  if (done == 0) return result;
  const auto scored = static_cast<double>(result.tokens_scored);
  result.nll = total.nll / scored;
  result.perplexity = std::exp(result.nll);
  if (options.against) {
    result.against_perplexity = std::exp(total.reference_nll / scored);
    result.mean_kl = total.kl / scored;
    result.same_top = static_cast<double>(total.same_top) / scored;
  }
  return result;
}

std::string to_json(const PerplexityResult& result) {
  nlohmann::ordered_json windows = nlohmann::ordered_json::array();
  for (const WindowScore& window : result.windows) {
    windows.push_back({{"begin", window.begin}, {"end", window.end}, {"scored", window.scored}, {"nll", window.nll}});
    if (window.against_nll) windows.back()["against_nll"] = *window.against_nll;
    if (window.kl) windows.back()["kl"] = *window.kl;
  }
  nlohmann::ordered_json json = {
      {"perplexity", result.perplexity}, {"nll", result.nll}, {"tokens_scored", result.tokens_scored}};
  if (result.against_perplexity) {
    json["against_perplexity"] = *result.against_perplexity;
    json["delta_percent"] = delta_percent(result);
    json["mean_kl"] = *result.mean_kl;
    json["same_top"] = *result.same_top;
  }
  json["interrupted"] = result.interrupted;
  json["windows"] = std::move(windows);
  return json.dump(2) + "\n";
}

}  // namespace hxq
