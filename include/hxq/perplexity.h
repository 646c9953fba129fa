#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hxq/model.h"

namespace hxq {

struct PerplexityOptions {
  int64_t window = 0;       ///< tokens a window holds at most; 0: 2048, or the models' context where that is less
  int64_t stride = 0;       ///< tokens from one window's start to the next; in [1, window]; 0: a quarter of the window
  int64_t max_windows = 0;  ///< score only the first N windows; 0: all
  /// Compare against this model (the dense one, say) on the same tokens. Must have the same vocabulary.
  const Model* against = nullptr;
  /// Called after every window with the number done and the total.
  std::function<void(int64_t done, int64_t total)> progress = {};
  /// Asked every few hundred tokens: true ends the measurement with the windows finished so far.
  std::function<bool()> interrupted = {};
};

struct WindowScore {
  int64_t begin = 0;                       ///< first token of the window
  int64_t end = 0;                         ///< one past its last token
  int64_t scored = 0;                      ///< tokens whose probability counts: those no earlier window has seen
  double nll = 0;                          ///< sum of their negative log-likelihoods, in nats
  std::optional<double> against_nll = {};  ///< that of the other model
  std::optional<double> kl = {};           ///< sum of KL(against || model) over the same tokens, in nats
};

struct PerplexityResult {
  double perplexity = 0;  ///< exp(nll)
  double nll = 0;         ///< mean negative log-likelihood of a scored token, in nats
  int64_t tokens_scored = 0;
  std::vector<WindowScore> windows;
  bool interrupted = false;                  ///< `windows` are those finished before; without any, figures are 0
  std::optional<double> against_perplexity;  ///< of the other model, on the same tokens
  std::optional<double> mean_kl;             ///< mean KL(against || model) over scored tokens, in nats
  std::optional<double> same_top;            ///< share of scored tokens where both models rank the same token first
};

/// Strided-window perplexity as in Hugging Face's "Perplexity of fixed-length models": each window is run from an empty
/// state, and only tokens that no earlier window has scored count; the very first token has no prediction.
/// Throws `Error` if there are fewer than 2 tokens, one is outside the vocabulary, the options make no sense, a
/// model's context does not hold the window, or logits are not finite.
PerplexityResult perplexity(const Model& model, std::span<const int32_t> tokens, const PerplexityOptions& options = {});

/// How much larger the perplexity is than the other model's, which there must be, in percent.
inline double delta_percent(const PerplexityResult& result) {
  return 100 * (result.perplexity / *result.against_perplexity - 1);
}

/// The result as JSON text, two spaces of indentation.
std::string to_json(const PerplexityResult& result);

}  // namespace hxq
