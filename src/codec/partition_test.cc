#include "codec/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "optimal_clusters.h"

namespace hxq {
namespace {

struct Weighted {
  std::vector<double> position, weight;

  /// Every point as often as its weight says.
  std::vector<double> expanded() const {
    std::vector<double> all;
    for (size_t i = 0; i < position.size(); ++i) {
      for (double w = 0; w < weight[i]; ++w) all.push_back(position[i]);
    }
    return all;
  }
};

Weighted random_points(int n, unsigned seed, int max_weight, bool heavy_tails) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> weight(1, max_weight);
  Weighted points;
  for (int i = 0; i < n; ++i) {
    points.position.push_back(heavy_tails ? normal(random) / std::pow(std::abs(normal(random)), 2) : normal(random));
    points.weight.push_back(weight(random));
  }
  std::sort(points.position.begin(), points.position.end());
  return points;
}

Weighted evenly_spaced(int n) {
  Weighted points;
  for (int i = 0; i < n; ++i) points.position.push_back(i), points.weight.push_back(1);
  return points;
}

/// Least error + cluster_price * clusters + outlier_price * outliers, every split tried.
double exhaustive_cost(const PointSums& sums, double cluster_price, double outlier_price) {
  std::vector<double> best(static_cast<size_t>(sums.size()) + 1);
  for (int32_t end = 1; end <= sums.size(); ++end) {
    best[end] = best[end - 1] + outlier_price * sums.weight(end - 1, end);
    for (int32_t begin = 0; begin < end; ++begin) {
      best[end] = std::min(best[end], best[begin] + sums.squared_error(begin, end) + cluster_price);
    }
  }
  return best.back();
}

/// Least error + outlier_price * outliers with exactly `count` clusters, every split tried.
double exhaustive_cost_of_count(const PointSums& sums, int count, double outlier_price) {
  const auto n = static_cast<size_t>(sums.size());
  std::vector<double> before(n + 1), now(n + 1);
  for (size_t i = 0; i < n; ++i)
    before[i + 1] = before[i] + outlier_price * sums.weight(static_cast<int32_t>(i), static_cast<int32_t>(i) + 1);
  for (int clusters = 0; clusters < count; ++clusters) {
    now[0] = INFINITY;
    for (int32_t end = 1; end <= sums.size(); ++end) {
      now[end] = now[end - 1] + outlier_price * sums.weight(end - 1, end);
      for (int32_t begin = 0; begin < end; ++begin) {
        now[end] = std::min(now[end], before[begin] + sums.squared_error(begin, end));
      }
    }
    before = now;
  }
  return before[n];
}

TEST(PointSums, AgreesWithDirectSumsAcrossScales) {
  const Weighted points = random_points(300, 3, 9, true);
  const PointSums sums(points.position, points.weight);
  const double unit2 = sums.unit() * sums.unit();
  for (int32_t begin = 0; begin < 300; begin += 7) {
    for (int32_t end = begin + 1; end <= 300; end += 5) {
      double weight = 0, sum = 0, error = 0;
      for (int32_t i = begin; i < end; ++i) weight += points.weight[i], sum += points.weight[i] * points.position[i];
      for (int32_t i = begin; i < end; ++i) error += points.weight[i] * std::pow(points.position[i] - sum / weight, 2);
      EXPECT_NEAR(sums.mean(begin, end), sum / weight, 1e-9 * std::abs(sum / weight) + 1e-9);
      EXPECT_NEAR(sums.squared_error(begin, end) * unit2, error, 1e-7 * error + 1e-12);
      EXPECT_EQ(sums.weight(begin, end), weight);
    }
  }
}

TEST(Partitioner, FindsTheCheapestPartitionAtAnyPrices) {
  for (unsigned seed = 0; seed < 6; ++seed) {
    const Weighted points = random_points(150, seed, 20, seed % 2 == 1);
    const PointSums sums(points.position, points.weight);
    Partitioner partitioner(sums);
    for (double cluster_price = 1e-8; cluster_price < 10; cluster_price *= 10) {
      for (double outlier_price : {1e-9, 1e-7, 1e-5, 1e-3, kNoOutliers}) {
        const Partition partition = partitioner.solve(cluster_price, outlier_price);
        const double paid = partition.outliers > 0 ? outlier_price * partition.outliers : 0;
        const double cost = partition.error + cluster_price * partition.size() + paid;
        const double least = exhaustive_cost(sums, cluster_price, outlier_price);
        EXPECT_NEAR(cost, least, 1e-9 * least) << seed << " " << cluster_price << " " << outlier_price;
      }
    }
  }
}

// Evenly spaced points have the same cost for many partitions at once, so that most counts are best at no price alone.
TEST(Partitioner, ReachesEveryCountAtLeastError) {
  for (const Weighted& points : {random_points(60, 7, 1, false), random_points(60, 8, 6, true), evenly_spaced(61)}) {
    const PointSums sums(points.position, points.weight);
    const std::vector<double> all = points.expanded();
    Partitioner partitioner(sums);
    for (int count = 1; count <= sums.size(); ++count) {
      double price = 0;
      const Partition partition = partitioner.solve_count(count, kNoOutliers, price);
      const double least = testing::exhaustive_error(all, count);
      EXPECT_EQ(partition.size(), count);
      EXPECT_NEAR(partition.error * sums.unit() * sums.unit(), least, 2e-5 * least + 1e-13) << count;
    }
  }
}

TEST(Partitioner, ReachesEveryCountWithOutliers) {
  for (const Weighted& points : {random_points(60, 9, 1, true), random_points(60, 10, 6, false), evenly_spaced(60)}) {
    const PointSums sums(points.position, points.weight);
    Partitioner partitioner(sums);
    for (int count = 1; count <= 20; ++count) {
      for (double outlier_price : {1e-5, 1e-3, 1e-2}) {
        double price = 0;
        const Partition partition = partitioner.solve_count(count, outlier_price, price);
        const double least = exhaustive_cost_of_count(sums, count, outlier_price);
        if (partition.size() != count) continue;  // every further cluster would cost more than its outliers
        EXPECT_NEAR(partition.error + outlier_price * partition.outliers, least, 2e-5 * least + 1e-13)
            << count << " " << outlier_price;
      }
    }
  }
}

TEST(Reference, DivideAndConquerAgreesWithEverySplitTried) {
  for (const Weighted& points : {random_points(120, 11, 3, false), random_points(120, 12, 1, true)}) {
    const std::vector<double> all = points.expanded();
    for (int k : {1, 2, 7, 30}) {
      const double least = testing::exhaustive_error(all, k);
      EXPECT_NEAR(testing::divide_and_conquer_error(all, k), least, 1e-9 * least);
    }
  }
}

}  // namespace
}  // namespace hxq
