#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "hxq/tensor.h"

namespace hxq::testing {

/// SNR in dB of the recipe that the encoder replaces: 256 levels at evenly spaced percentiles (0 to 100), 10 Lloyd
/// steps over all values, and the `outliers` largest magnitudes exact.
inline double percentile_codebook_snr_db(const TensorView& source, int64_t outliers) {
  std::vector<float> sorted = to_float(source);
  std::sort(sorted.begin(), sorted.end());
  std::vector<double> levels(256);
  for (size_t i = 0; i < levels.size(); ++i) {
    const double at = static_cast<double>(i) / 255 * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, sorted.size() - 1);
    levels[i] =
        sorted[below] + (at - static_cast<double>(below)) * (static_cast<double>(sorted[above]) - sorted[below]);
  }
  // Calls use(level, begin, end) with the run of sorted values nearest to each level.
  const auto for_cells = [&](auto use) {
    auto begin = sorted.begin();
    for (size_t c = 0; c < levels.size(); ++c) {
      const auto end =
          c + 1 < levels.size() ? std::upper_bound(begin, sorted.end(), (levels[c] + levels[c + 1]) / 2) : sorted.end();
      use(levels[c], begin, end);
      begin = end;
    }
  };
  for (int step = 0; step < 10; ++step) {
    std::vector<double> next;
    for_cells([&](double level, auto begin, auto end) {
      next.push_back(begin == end ? level : std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin));
    });
    levels = next;
  }
  std::vector<float> magnitudes(sorted.size());
  std::transform(sorted.begin(), sorted.end(), magnitudes.begin(), [](float v) { return std::abs(v); });
  std::sort(magnitudes.begin(), magnitudes.end(), std::greater<>());
  const float limit =
      outliers > 0 ? magnitudes[static_cast<size_t>(outliers) - 1] : std::numeric_limits<float>::infinity();
  double signal = 0, error = 0;
  int64_t left = outliers;
  for_cells([&](double level, auto begin, auto end) {
    for (auto it = begin; it != end; ++it) {
      signal += static_cast<double>(*it) * *it;
      if (std::abs(*it) >= limit && left-- > 0) continue;
      error += (*it - level) * (*it - level);
    }
  });
  return 10 * std::log10(signal / error);
}

}  // namespace hxq::testing
