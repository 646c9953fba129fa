#include "codec/codebook/fit.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>

#include "codec/codebook/segments.h"
#include "codec/partition.h"

namespace hxq {
namespace {

/// Points that a partition is searched on; further values are merged into them where that cannot matter.
constexpr size_t kMaxPoints = 6144;
/// Values on which outliers are chosen while searching; more than that only for large F32 tensors.
constexpr size_t kMaxSearchSlots = 24576;

/// What the search works on: the slots that are not outliers, and runs of them that are always kept together.
struct Points {
  std::vector<double> position = {};
  std::vector<double> weight = {};
};

Points remaining(const ValueHistogram& histogram, std::span<const int64_t> outliers) {
  Points points;
  points.position.reserve(histogram.size());
  points.weight.reserve(histogram.size());
  for (size_t i = 0; i < histogram.size(); ++i) {
    const int64_t count = histogram.count[i] - outliers[i];
    if (count == 0) continue;
    points.position.push_back(histogram.value[i]);
    points.weight.push_back(static_cast<double>(count));
  }
  return points;
}

// Ends of the longest runs, from left to right, whose squared error stays within `limit`. In an optimal codebook all
// cells have about the same error, so this makes runs that are the same fraction of the cell they will be in, and
// leaves isolated values alone.
std::vector<int32_t> runs_within(const PointSums& sums, double limit) {
  std::vector<int32_t> ends;
  int32_t begin = 0;
  for (int32_t end = 2; end <= sums.size(); ++end) {
    if (sums.squared_error(begin, end) <= limit) continue;
    begin = end - 1;
    ends.push_back(begin);
  }
  ends.push_back(sums.size());
  return ends;
}

// The points in about `max_points` runs, if there are more.
Points merge(const Points& points, const PointSums& sums, size_t max_points = kMaxPoints) {
  if (points.position.size() <= max_points) return points;
  const double target = static_cast<double>(max_points) * 0.9;
  double limit = sums.squared_error(0, sums.size()) / (target * target * target);
  std::vector<int32_t> ends;
  constexpr int kPasses = 12;  // two or three, but for values of very different magnitude
  for (int pass = 0; pass < kPasses; ++pass) {
    ends = runs_within(sums, limit);
    const double ratio = static_cast<double>(ends.size()) / target;
    if (ratio > 0.8 && ratio < 1.1) break;
    limit *= std::pow(ratio, 3);
  }
  Points merged;
  int32_t begin = 0;
  for (int32_t end : ends) {
    merged.position.push_back(end - begin == 1 ? points.position[begin] : sums.mean(begin, end));
    merged.weight.push_back(sums.weight(begin, end));
    begin = end;
  }
  return merged;
}

// Fewer slots: runs of values too close to matter for the search. Only values and counts are filled in.
ValueHistogram coarsen(const ValueHistogram& histogram) {
  const Points points = remaining(histogram, std::vector<int64_t>(histogram.size()));
  Points merged = merge(points, PointSums(points.position, points.weight), kMaxSearchSlots);
  ValueHistogram coarse;
  coarse.value = std::move(merged.position);
  for (double weight : merged.weight) coarse.count.push_back(static_cast<int64_t>(weight));
  return coarse;
}

// The nearest multiple of `unit` for a binary16 number with that scale.
double round_to_half(double value, double scale) {
  const double half = value / scale;
  if (half == 0) return 0;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(half), -14) - 10);
  return std::nearbyint(half / unit) * unit * scale;
}

std::vector<double> means(const PointSums& sums, const Partition& partition) {
  std::vector<double> levels;
  for (const Cluster& cluster : partition.clusters) levels.push_back(sums.mean(cluster.begin, cluster.end));
  return levels;
}

// Lloyd's steps on the unmerged points: moves the borders between clusters off the ends of merged runs.
void polish(const Points& points, const PointSums& sums, std::vector<double>& levels) {
  constexpr int kSteps = 10;
  for (int step = 0; step < kSteps; ++step) {
    bool moved = false;
    int32_t begin = 0;
    double next_level = levels[0];
    for (size_t c = 0; c < levels.size(); ++c) {
      const double level = next_level;
      int32_t end = sums.size();
      if (c + 1 < levels.size()) {
        next_level = levels[c + 1];
        const auto at =
            std::upper_bound(points.position.begin() + begin, points.position.end(), (level + next_level) / 2);
        end = static_cast<int32_t>(at - points.position.begin());
      }
      if (end > begin) levels[c] = end - begin == 1 ? points.position[begin] : sums.mean(begin, end);
      moved = moved || levels[c] != level;
      begin = end;
    }
    if (!moved) return;
  }
}

double middle(float a, float b) { return (static_cast<double>(a) + b) / 2; }

/// Outliers chosen for given levels, and the squared error of everything else.
struct Choice {
  std::vector<int64_t> outliers = {};  // [slots]
  double error = 0;
};

// The `budget` elements with the largest error; equal errors in ascending order of value.
Choice choose_outliers(const ValueHistogram& histogram, std::span<const float> levels, int64_t budget) {
  using Candidate = std::pair<double, size_t>;  // squared error of one element, slot
  Choice choice;
  choice.outliers.resize(histogram.size());
  std::vector<Candidate> candidates;
  size_t level = 0;
  for (size_t i = 0; i < histogram.size(); ++i) {
    const double value = histogram.value[i];
    while (level + 1 < levels.size() && value > middle(levels[level], levels[level + 1])) ++level;
    const double error = (value - levels[level]) * (value - levels[level]);
    if (error > 0) candidates.emplace_back(error, i);
  }
  const auto less = [](const Candidate& a, const Candidate& b) {
    return a.first < b.first || (a.first == b.first && a.second > b.second);
  };
  if (budget > 0) std::make_heap(candidates.begin(), candidates.end(), less);
  for (auto end = candidates.end(); budget > 0 && end != candidates.begin(); --end) {
    std::pop_heap(candidates.begin(), end, less);
    const size_t slot = end[-1].second;
    choice.outliers[slot] = std::min(budget, histogram.count[slot]);
    budget -= choice.outliers[slot];
  }
  for (const auto& [error, slot] : candidates) {
    choice.error += error * static_cast<double>(histogram.count[slot] - choice.outliers[slot]);
  }
  return choice;
}

/// Levels as they are stored, and the best outliers for them.
struct Solution {
  std::vector<float> levels = {};
  Choice choice = {};
};

class Fitter {
 public:
  Fitter(const ValueHistogram& histogram, int32_t max_codewords, int64_t max_outliers)
      : histogram_(histogram), k_(max_codewords), budget_(max_outliers) {}

  /// The best solution found.
  Solution run() const;
  /// A solution for levels that were found on a coarser histogram.
  Solution refine(const std::vector<float>& levels) const;

 private:
  /// Prices at which about k clusters and about the budget of outliers are best. Scaling all cells by a factor scales
  /// the price of a cluster with its cube and that of an outlier with its square, so the number of outliers follows
  /// the ratio of the outlier price to (cluster price)^(2/3), whatever the number of clusters.
  struct Prices {
    double cluster = 0;
    double ratio = 0;

    double outlier() const { return ratio * std::pow(cluster, 2.0 / 3); }
  };

  Solution with_outliers(std::span<const double> levels) const;
  std::vector<double> best_levels(std::span<const int64_t> outliers, double& cluster_price) const;
  void improve(Solution& solution, double cluster_price) const;
  Prices joint_prices(Partitioner& partitioner, Prices prices) const;
  double smallest_outlier_error(const Solution& solution) const;

  const ValueHistogram& histogram_;
  int32_t k_;
  int64_t budget_;
};

// Solutions are compared as they will be stored: a level far beyond the others would leave these no precision.
Solution Fitter::with_outliers(std::span<const double> levels) const {
  std::vector<float> snapped = snap_levels(levels);
  Choice choice = choose_outliers(histogram_, snapped, budget_);
  return {std::move(snapped), std::move(choice)};
}

// The optimal levels for what the outliers leave; none if nothing is left.
std::vector<double> Fitter::best_levels(std::span<const int64_t> outliers, double& cluster_price) const {
  const Points points = remaining(histogram_, outliers);
  if (points.position.size() <= static_cast<size_t>(k_)) return points.position;
  const PointSums sums(points.position, points.weight);
  const Points merged = merge(points, sums);
  const PointSums merged_sums(merged.position, merged.weight);
  const Partition partition = Partitioner(merged_sums).solve_count(k_, kNoOutliers, cluster_price);
  std::vector<double> levels = means(merged_sums, partition);
  if (!levels.empty()) polish(points, sums, levels);
  return levels;
}

// Levels for the outliers and outliers for the levels, in turn; each step lowers the error.
void Fitter::improve(Solution& solution, double cluster_price) const {
  constexpr int kRounds = 6;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<double> levels = best_levels(solution.choice.outliers, cluster_price);
    if (levels.empty()) return;
    Solution next = with_outliers(levels);
    const double before = solution.choice.error;
    if (next.choice.error < before) solution = std::move(next);
    if (!(solution.choice.error < before * (1 - 1e-6))) return;
  }
}

double Fitter::smallest_outlier_error(const Solution& solution) const {
  double smallest = DBL_MAX;
  for (size_t i = 0, level = 0; i < histogram_.size(); ++i) {
    const double value = histogram_.value[i];
    while (level + 1 < solution.levels.size() && value > middle(solution.levels[level], solution.levels[level + 1])) {
      ++level;
    }
    if (solution.choice.outliers[i] > 0) smallest = std::min(smallest, std::abs(value - solution.levels[level]));
  }
  return smallest;
}

Fitter::Prices Fitter::joint_prices(Partitioner& partitioner, Prices prices) const {
  double many_ratio = 0, few_ratio = 0;  // ratios with too many and too few outliers; 0: not known
  const auto budget = static_cast<double>(budget_);
  constexpr int kPasses = 24;
  for (int pass = 0; pass < kPasses; ++pass) {
    const Partition partition = partitioner.solve(prices.cluster, prices.outlier());
    const double clusters = std::max(partition.size(), 1);
    const bool enough = std::abs(partition.outliers - budget) <= std::max(1.0, 0.02 * budget);
    if (enough && std::abs(clusters - k_) <= 0.01 * k_) break;
    prices.cluster *= std::clamp(std::pow(clusters / k_, 3.0), 0.1, 10.0);
    if (enough) continue;
    (partition.outliers > budget ? many_ratio : few_ratio) = prices.ratio;
    prices.ratio *= std::clamp(std::sqrt((partition.outliers + 0.5) / (budget + 0.5)), 0.25, 4.0);
    if (many_ratio == 0 || few_ratio == 0) continue;
    if (few_ratio < many_ratio * 1.001) break;
    const bool inside = prices.ratio > many_ratio && prices.ratio < few_ratio;
    if (!inside || pass % 3 == 2) prices.ratio = std::sqrt(many_ratio * few_ratio);
  }
  return prices;
}

Solution Fitter::refine(const std::vector<float>& levels) const {
  Solution solution{levels, choose_outliers(histogram_, levels, budget_)};
  improve(solution, 0);
  return solution;
}

Solution Fitter::run() const {
  const std::vector<int64_t> none(histogram_.size());
  double cluster_price = 0;
  Solution best = with_outliers(best_levels(none, cluster_price));
  if (budget_ == 0 || best.choice.error == 0 || histogram_.size() <= static_cast<size_t>(k_)) return best;

  const Points points = remaining(histogram_, none);
  const Points merged = merge(points, PointSums(points.position, points.weight));
  const PointSums sums(merged.position, merged.weight);
  Partitioner partitioner(sums);
  const double radius = smallest_outlier_error(best) / sums.unit();
  const Prices start{cluster_price, radius * radius / std::pow(cluster_price, 2.0 / 3)};
  const Prices found = joint_prices(partitioner, start);
  // Not every number of outliers is the best one at some price, so prices to either side are tried as well.
  for (const double factor : {1.0, 0.7, 0.84, 1.19, 1.41}) {
    const Prices prices{found.cluster, found.ratio * factor};
    double price = prices.cluster;
    const Partition partition = partitioner.solve_count(k_, prices.outlier(), price);
    if (partition.size() == 0) continue;
    Solution solution = with_outliers(means(sums, partition));
    improve(solution, price);
    if (solution.choice.error < best.choice.error) best = std::move(solution);
  }
  return best;
}

/// The best of some turns of levels in segments for the outliers and outliers for these levels.
Solution put_in_segments(const ValueHistogram& histogram, const Solution& start, int64_t max_outliers) {
  constexpr int kTurns = 4;
  Solution best, now = start;
  for (int turn = 0; turn < kTurns; ++turn) {
    now.levels = segment_levels(histogram, now.choice.outliers, start.levels);
    now.choice = choose_outliers(histogram, now.levels, max_outliers);
    if (turn > 0 && !(now.choice.error < best.choice.error)) break;
    best = now;
  }
  return best;
}

}  // namespace

std::vector<float> snap_levels(std::span<const double> values) {
  double largest = 0;
  for (double value : values) largest = std::max(largest, std::abs(value));
  if (largest == 0) return {0.0f};
  double scale = std::ldexp(1.0, std::ilogb(largest) - 14);
  if (std::abs(round_to_half(largest, scale)) >= 0x1p15 * scale) scale *= 2;
  constexpr double kLargest = 0x1.ffcp127;  // of the floats with 11 significant bits
  std::vector<float> levels;
  for (double value : values) {
    // The rounding to float cuts only subnormals, and leaves multiples of the same unit. Adding 0 turns -0 into 0.
    const float level = static_cast<float>(std::clamp(round_to_half(value, scale), -kLargest, kLargest)) + 0.0f;
    if (levels.empty() || level > levels.back()) levels.push_back(level);
  }
  return levels;
}

std::vector<float> whole_levels(std::span<const float> levels) {
  double largest = 0;
  for (const float level : levels) largest = std::max(largest, std::abs(static_cast<double>(level)));
  const double scale = largest > 0 ? std::ldexp(1.0, std::ilogb(largest) - 14) : 1;
  std::vector<float> whole;
  for (const float level : levels) {
    // Below 2^11 a whole number is a binary16 number; above it a binary16 number is whole already.
    const auto rounded = static_cast<float>(std::nearbyint(level / scale) * scale) + 0.0f;
    if (whole.empty() || rounded > whole.back()) whole.push_back(rounded);
  }
  return whole;
}

std::vector<double> thresholds_of(std::span<const float> levels) {
  std::vector<double> thresholds;
  for (size_t i = 0; i + 1 < levels.size(); ++i) {
    thresholds.push_back(middle(levels[i], levels[i + 1]));
  }
  return thresholds;
}

CodebookFit fit_codebook(const ValueHistogram& histogram, int32_t max_codewords, int64_t max_outliers,
                         bool in_segments) {
  const Fitter fitter(histogram, max_codewords, max_outliers);
  Solution solution;
  if (histogram.size() <= kMaxSearchSlots) {
    solution = fitter.run();
  } else {
    const ValueHistogram coarse = coarsen(histogram);
    solution = fitter.refine(Fitter(coarse, max_codewords, max_outliers).run().levels);
  }
  if (in_segments && solution.choice.error > 0 && solution.levels.size() == kSegments * kSegmentSteps) {
    solution = put_in_segments(histogram, solution, max_outliers);
    return {std::move(solution.levels), std::move(solution.choice.outliers), solution.choice.error};
  }
  std::vector<float> whole = whole_levels(solution.levels);
  Choice choice = choose_outliers(histogram, whole, max_outliers);
  if (choice.error <= solution.choice.error * kWholeLevelCost) {
    return {std::move(whole), std::move(choice.outliers), choice.error};
  }
  return {std::move(solution.levels), std::move(solution.choice.outliers), solution.choice.error};
}

}  // namespace hxq
