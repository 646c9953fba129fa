#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "hxq/error.h"
#include "hxq/generate.h"
#include "kernels/most_likely.h"

namespace hxq {
namespace {

[[noreturn]] void throw_not_finite() { throw Error("the model's logits are not finite"); }

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_state_(options.seed) {
  if (!(options.temperature >= 0)) throw Error(fmt::format("temperature {}: expected 0 or more", options.temperature));
  if (options.top_k < 0) throw Error(fmt::format("top-k {}: expected 0 (all) or more", options.top_k));
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    throw Error(fmt::format("top-p {}: expected more than 0 and at most 1", options.top_p));
  }
  if (!(options.repetition_penalty > 0)) {
    throw Error(fmt::format("repetition penalty {}: expected more than 0", options.repetition_penalty));
  }
}

void Sampler::observe(std::span<const int32_t> tokens) {
  if (options_.repetition_penalty == 1) return;
  if (tokens.size() > 1) {  // a prompt
    seen_.insert(seen_.end(), tokens.begin(), tokens.end());
    std::ranges::sort(seen_);
    seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
  } else if (!tokens.empty()) {
    const auto at = std::ranges::lower_bound(seen_, tokens[0]);
    if (at == seen_.end() || *at != tokens[0]) seen_.insert(at, tokens[0]);
  }
}

int32_t Sampler::choose(std::span<float> logits) {
  const auto penalty = static_cast<float>(options_.repetition_penalty);
  if (penalty != 1) {
    for (const int32_t token : seen_) {
      float& logit = logits[static_cast<size_t>(token)];
      logit = logit > 0 ? logit / penalty : logit * penalty;
    }
  }
  const int32_t token = options_.temperature == 0 ? choose(kernels::most_likely_of(logits)) : sample(logits);
  observe({&token, 1});
  return token;
}

bool Sampler::is_greedy() const noexcept { return options_.temperature == 0 && options_.repetition_penalty == 1; }

int32_t Sampler::choose(int32_t most_likely) {
  if (most_likely == kernels::kNotFinite) throw_not_finite();
  return most_likely;
}

int32_t Sampler::sample(std::span<const float> logits) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) candidates_.emplace_back(logits[i], static_cast<int32_t>(i));
  const auto more_likely = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  size_t kept = candidates_.size();
  if (options_.top_k > 0) kept = std::min(kept, static_cast<size_t>(options_.top_k));
  const bool ordered = kept < candidates_.size() || options_.top_p < 1;
  if (ordered) {
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(kept), candidates_.end(),
                      more_likely);
    candidates_.resize(kept);
  }
  const float largest = ordered ? candidates_.front().first : *std::ranges::max_element(logits);
  double total = 0;
  for (auto& [logit, token] : candidates_) {
    logit = static_cast<float>(std::exp(static_cast<double>(logit - largest) / options_.temperature));
    total += static_cast<double>(logit);
  }
  if (!std::isfinite(total)) throw_not_finite();
  if (options_.top_p < 1) {
    double sum = 0;
    size_t count = 0;
    while (count < candidates_.size() && sum < options_.top_p * total) {
      sum += static_cast<double>(candidates_[count++].first);
    }
    candidates_.resize(count);
    total = sum;
  }
  double remaining = next_uniform() * total;
  for (const auto& [weight, token] : candidates_) {
    remaining -= static_cast<double>(weight);
    if (remaining < 0) return token;
  }
  return candidates_.back().second;
}

/// SplitMix64 (Steele, Lea & Flood 2014), to [0, 1): the same numbers on every platform.
double Sampler::next_uniform() {
  uint64_t z = random_state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

}  // namespace hxq
