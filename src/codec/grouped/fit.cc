#include "codec/grouped/fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "codec/partition.h"
#include "io/threads.h"

namespace hxq {
namespace {

constexpr int kScales = 255;        // one number is left for groups of zeros
constexpr int kSignedScales = 127;  // of each sign
constexpr int kSignedBits = 6;      // up to which a sign is worth more than scales that lie closer
constexpr double kMaxSpan = 1024;   // largest scale / smallest: steps of 2.8 % at most
constexpr int kTrials = 24;         // scales of a group while levels are fitted; more of small samples
constexpr int kLeastTurns = 10, kMostTurns = 64;
constexpr size_t kWork = size_t{1} << 21;  // turns, and trials, times weights
constexpr int kTrialsForBoth = 24;         // signs
constexpr int kTurnsThatMoveFar = 3;
constexpr size_t kProbes = 128;     // groups
constexpr double kStride = 0.3;     // distance of the scales first tried, as a share of the mean distance of levels
constexpr int kUnits = 400;         // in which few levels are tried
constexpr double kLeastUnit = 0.7;  // the least of them, as a share of the largest

Extremes extremes_of(std::span<const float> weights) noexcept {
  return scale_steps().extremes(weights.data(), weights.size());
}

/// Ascending scales, each the same multiple of the one before, around those at which the largest level is a peak.
std::vector<float> scale_grid(float least_peak, float largest_peak, int count) {
  const double largest = 1.25 * largest_peak;
  const double least = std::max(0.5 * least_peak, largest / kMaxSpan);
  const double step = std::log(largest / least) / (count - 1);
  std::vector<float> scales;
  for (int i = 0; i < count; ++i) scales.push_back(static_cast<float>(least * std::exp(step * i)));
  return scales;
}

/// The number of the scale that is nearest to the peak, in ratio.
int nearest_scale(std::span<const float> scales, float peak) noexcept {
  const auto count = static_cast<int>(scales.size());
  const auto scale = [&](int i) { return scales[static_cast<size_t>(i)]; };
  // The first that is not less: ratios are equal but for rounding, so that this is its number, or next to it.
  const float place = std::log(peak / scale(0)) / std::log(scale(1) / scale(0));
  int at = std::clamp(static_cast<int>(std::clamp(place, 0.0f, 256.0f)) + 1, 0, count);
  while (at > 0 && scale(at - 1) >= peak) --at;
  while (at < count && scale(at) < peak) ++at;
  if (at == count) return count - 1;
  if (at == 0) return 0;
  return at - (peak / scale(at - 1) < scale(at) / peak ? 1 : 0);
}

/// The units to 1 that levels are tried in. Few levels in a byte are worth a choice, more of them have bits to spare.
std::vector<double> units_for(const ScaledLevels& levels, int bits) {
  const double largest = std::max(std::fabs(levels.level.front()), std::fabs(levels.level.back()));
  const double unit = largest_level(bits) / largest;
  if (bits > 4) return {unit};
  std::vector<double> units;
  for (int i = 0; i < kUnits; ++i) units.push_back(unit * (1 - (1 - kLeastUnit) * i / kUnits));
  return units;
}

/// The unit in which rounding the levels to whole numbers costs least.
double best_unit(const ScaledLevels& levels, int bits) {
  double best = 0, least = std::numeric_limits<double>::infinity();
  for (const double unit : units_for(levels, bits)) {
    double cost = 0;
    for (size_t i = 0; i < levels.level.size(); ++i) {
      const double change = std::nearbyint(levels.level[i] * unit) / unit - levels.level[i];
      cost += levels.weight[i] * change * change;
    }
    if (cost < least) best = unit, least = cost;
  }
  return best;
}

/// Levels as whole numbers; zeros fill up what is missing to k.
std::vector<float> whole_levels(const ScaledLevels& levels, double unit, int bits) {
  std::vector<float> whole(size_t{1} << bits);
  std::ranges::transform(levels.level, whole.begin(), [&](double level) {
    return static_cast<float>(std::nearbyint(level * unit)) + 0.0f;  // adding 0 turns -0 into 0
  });
  std::ranges::sort(whole);
  return whole;
}

/// The numbers of the scales to search for a group whose largest magnitude is `peak`.
ScaleRange range_of(const GroupedFit& fit, float peak) noexcept {
  const int nearest = nearest_scale(fit.grid, peak), count = static_cast<int>(fit.grid.size());
  const int begin = std::clamp(nearest + fit.reach.begin, 0, count - 1);
  return {begin, std::clamp(nearest + fit.reach.end, begin + 1, count), fit.reach.stride};
}

class GroupFitter {
 public:
  GroupFitter(const GroupSample& sample, GroupedFit start, LevelForm form, int threads)
      : sample_(sample),
        form_(form),
        threads_(threads),
        effort_(static_cast<int>(kWork / sample.weights.size())),
        fit_(std::move(start)) {
    for (size_t i = 0; i < sample.size(); ++i) {
      const auto [low, high] = extremes_of(sample.group(i));
      peaks_.push_back(std::max(high, -low));
      scale_.push_back({nearest_scale(fit_.grid, peaks_.back()), fit_.has_signs && -low > high});
    }
  }

  GroupedFit run() {
    constexpr double kFall = 2e-5;
    double least = std::numeric_limits<double>::infinity();
    GroupedFit best;
    for (int turn = 0; turn < std::clamp(effort_, kLeastTurns, kMostTurns); ++turn) {
      const double error = take_turn(turn);
      const bool falls = error < least * (1 - kFall);
      if (error < least) {
        least = error;
        best = fit_;
        best.error = error;
      }
      if (!falls || form_.is_uniform) break;
    }
    return best;
  }

 private:
  /// Levels for the scales, then scales for the levels. Returns the error.
  double take_turn(int turn) {
    find_levels();
    const ScaleSearch search(fit_.levels, fit_.scales());
    if (turn < kTurnsThatMoveFar) find_distances(search);
    fit_.set_trials(std::max(effort_, kTrials));
    const int chunks = static_cast<int>(std::min<size_t>(sample_.size(), 256));
    parallel_for(threads_, chunks, [&](int chunk) {
      const size_t n = sample_.size(), c = static_cast<size_t>(chunk), all = static_cast<size_t>(chunks);
      for (size_t i = n * c / all; i < n * (c + 1) / all; ++i) {
        scale_[i] = find_scale(fit_, search, sample_.group(i), true);
      }
    });
    double error = 0;
    for (const GroupScale& of : scale_) error += of.error;
    return error;
  }

  void find_levels() {
    if (form_.is_uniform) {
      fit_.levels = uniform_levels();
      fit_.unit = fit_.levels.back();
      return;
    }
    std::vector<float> scale_of;
    for (const GroupScale& of : scale_) {
      const float scale = fit_.grid[static_cast<size_t>(of.scale)];
      scale_of.push_back(of.is_negative ? -scale : scale);
    }
    const ScaledLevels levels = levels_for(sample_, scale_of, form_.bits, price_);
    fit_.unit = best_unit(levels, form_.bits);
    fit_.levels = whole_levels(levels, fit_.unit, form_.bits);
  }

  /// Some groups are searched on the whole grid, which tells where to look for the others' scales.
  void find_distances(const ScaleSearch& search) {
    GroupedFit everywhere = fit_;
    everywhere.set_trials(2 * kScales);
    const size_t probes = std::min(kProbes, sample_.size());
    fit_.distances.resize(probes);
    parallel_for(threads_, static_cast<int>(probes), [&](int probe) {
      const size_t i = static_cast<size_t>(probe) * sample_.size() / probes;
      const int scale = find_scale(everywhere, search, sample_.group(i), false).scale;
      fit_.distances[static_cast<size_t>(probe)] = scale - nearest_scale(fit_.grid, peaks_[i]);
    });
    std::ranges::sort(fit_.distances);
  }

  const GroupSample& sample_;
  LevelForm form_;
  int threads_;
  int effort_;
  GroupedFit fit_;
  std::vector<float> peaks_;
  std::vector<GroupScale> scale_;
  double price_ = 0;
};

}  // namespace

void GroupedFit::set_trials(int trials) {
  const int count = static_cast<int>(grid.size());
  // Both signs take a trial each; with few of them one sign has more to gain from those around its best.
  tries_both = has_signs && trials >= kTrialsForBoth;
  if (tries_both) trials /= 2;
  const double step = std::log(grid[1] / grid[0]);
  const int stride = std::clamp(static_cast<int>(kStride / (step * static_cast<double>(levels.size()))), 1, 8);
  if (trials * stride >= count || distances.empty()) {
    reach = {-count, count, trials >= count ? 1 : stride};
    return;
  }
  const int width = trials * stride;
  size_t most = 0;
  for (size_t first = 0, end = 0; first < distances.size(); ++first) {
    while (end < distances.size() && distances[end] < distances[first] + width) ++end;
    if (end - first <= most) continue;
    most = end - first;
    reach = {distances[first], distances[first] + width, stride};
  }
}

std::vector<float> GroupedFit::scales() const {
  std::vector<float> scales;
  for (const float scale : grid) scales.push_back(static_cast<float>(scale / unit));
  return scales;
}

GroupScale find_scale(const GroupedFit& fit, const ScaleSearch& search, std::span<const float> weights,
                      bool wants_error) noexcept {
  const Extremes extremes = extremes_of(weights);
  const bool is_negative = fit.has_signs && -extremes.least > extremes.largest;
  const ScaleRange range = range_of(fit, std::max(extremes.largest, -extremes.least));
  const auto search_as = [&](bool negative) {
    const auto [scale, error] = search.best(weights, range, negative, wants_error || fit.tries_both);
    return GroupScale{scale, negative, error};
  };
  const GroupScale best = search_as(is_negative);
  if (!fit.tries_both) return best;
  const GroupScale against = search_as(!is_negative);
  return against.error < best.error ? against : best;
}

int largest_level(int bits) noexcept { return bits <= 4 ? 127 : bits <= 6 ? 2047 : 32767; }

ScaledLevels levels_for(const GroupSample& sample, std::span<const float> scale_of, int bits, double& price) {
  float least = 0, largest = 0;
  for (size_t i = 0; i < sample.size(); ++i) {
    const auto [low, high] = extremes_of(sample.group(i));
    least = std::min({least, low / scale_of[i], high / scale_of[i]});
    largest = std::max({largest, low / scale_of[i], high / scale_of[i]});
  }
  const int bins = std::clamp(128 << bits, 2048, 8192);
  const double per_unit = (bins - 1) / (static_cast<double>(largest) - least);
  std::vector<double> weight(static_cast<size_t>(bins)), sum(static_cast<size_t>(bins));
  for (size_t i = 0; i < sample.size(); ++i) {
    const double counts = static_cast<double>(scale_of[i]) * scale_of[i], inverse = 1.0 / scale_of[i];
    for (const float w : sample.group(i)) {
      const double x = std::clamp<double>(w * inverse, least, largest);
      const auto bin = static_cast<size_t>((x - least) * per_unit);
      weight[bin] += counts;
      sum[bin] += counts * x;
    }
  }
  ScaledLevels points;
  for (size_t bin = 0; bin < weight.size(); ++bin) {
    if (weight[bin] == 0) continue;
    points.level.push_back(sum[bin] / weight[bin]);
    points.weight.push_back(weight[bin]);
  }
  if (points.level.size() <= size_t{1} << bits) return points;
  const PointSums sums(points.level, points.weight);
  const Partition partition = Partitioner(sums).solve_count(1 << bits, kNoOutliers, price);
  ScaledLevels levels;
  for (const auto& [begin, end] : partition.clusters) {
    levels.level.push_back(sums.mean(begin, end));
    levels.weight.push_back(sums.weight(begin, end));
  }
  return levels;
}

std::vector<float> uniform_levels() {
  std::vector<float> levels(256);
  std::iota(levels.begin(), levels.end(), -128.0f);
  return levels;
}

GroupedFit fit_groups(const GroupSample& sample, float least_peak, float largest_peak, LevelForm form, int threads) {
  GroupedFit start;
  start.has_signs = form.bits <= kSignedBits;
  start.grid = scale_grid(least_peak, largest_peak, start.has_signs ? kSignedScales : kScales);
  return GroupFitter(sample, start, form, threads).run();
}

}  // namespace hxq
