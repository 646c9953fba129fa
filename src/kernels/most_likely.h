#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels/context.h"

namespace hxq::kernels {

/// In place of a token: no choice can be made, because logits are not finite.
inline constexpr int32_t kNotFinite = -1;

/// token[i] = most_likely_of(logits[i, :])
struct MostLikelyArgs {
  const float* logits = nullptr;  // [rows, vocabulary], contiguous
  int64_t rows = 0;
  int64_t vocabulary = 0;
  int32_t* token = nullptr;  // [rows]
};
void most_likely(const MostLikelyArgs& args, const Context& context) noexcept;

/// The token with the largest logit, of equal ones the first; `kNotFinite` where one is NaN or the largest is infinite.
inline int32_t most_likely_of(std::span<const float> logits) noexcept {
  constexpr size_t kAtOnce = 64;  // seldom with a new largest; otherwise a few comparisons of vectors
  float largest = -std::numeric_limits<float>::infinity();
  size_t token = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kAtOnce) {
    const std::span<const float> rest = logits.subspan(begin);
    if (rest.size() >= kAtOnce) {
      int above = 0;
      for (size_t i = 0; i < kAtOnce; ++i) above |= !(rest[i] <= largest);  // true of NaN
      if (!above) continue;
    }
    for (size_t i = 0; i < std::min(rest.size(), kAtOnce); ++i) {
      if (rest[i] <= largest) continue;
      if (std::isnan(rest[i])) return kNotFinite;
      largest = rest[i];
      token = begin + i;
    }
  }
  return std::isinf(largest) ? kNotFinite : static_cast<int32_t>(token);
}

}  // namespace hxq::kernels
