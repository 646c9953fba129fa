#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace hxq {

/// Weighted points on a line, ascending, as sums from which the squared error of any run of points about its mean is
/// known in constant time. Positions are shifted to the weighted median and scaled to at most 1, and the sums run
/// outwards from the median, so that far outliers cost the bulk no precision.
class PointSums {
 public:
  /// `position` and `weight` have the same size, not 0; weights are > 0.
  PointSums(std::span<const double> position, std::span<const double> weight);

  int32_t size() const noexcept { return static_cast<int32_t>(nodes_.size()) - 1; }
  /// Total weight of points [begin, end).
  double weight(int32_t begin, int32_t end) const noexcept { return nodes_[end].weight - nodes_[begin].weight; }
  /// Mean of points [begin, end), not empty, in the caller's units.
  double mean(int32_t begin, int32_t end) const noexcept;
  /// Sum of weighted squared distances of points [begin, end), not empty, to their mean; in scaled units.
  double squared_error(int32_t begin, int32_t end) const noexcept;
  /// One scaled unit of length in the caller's units.
  double unit() const noexcept { return unit_; }

 private:
  friend class Partitioner;
  struct Node {
    double weight, sum, square;  // of the points between the median and here; negative on the left of it
  };
  std::vector<Node> nodes_;  // [size + 1]
  double origin_ = 0;
  double unit_ = 1;
};

/// Points [begin, end) that share a codeword.
struct Cluster {
  int32_t begin = 0;
  int32_t end = 0;
};

/// Disjoint clusters in ascending order; the points between them are outliers.
struct Partition {
  std::vector<Cluster> clusters = {};
  double error = 0;     ///< squared error of the clusters, in scaled units
  double outliers = 0;  ///< weight of the outliers

  int32_t size() const noexcept { return static_cast<int32_t>(clusters.size()); }
};

constexpr double kNoOutliers = std::numeric_limits<double>::infinity();

/// Optimal clusters on a line: least total of squared error + `cluster_price` per cluster + `outlier_price` per unit of
/// weight that is left out of the clusters.
///
/// The error of a run satisfies the quadrangle inequality, so each call is one on-line least-weight-subsequence pass,
/// O(n log n) (Wilber 1988; Galil and Park 1990); a price per cluster in place of their number as in Groenlund et al.,
/// arXiv 1701.07204, after Wu 1991.
class Partitioner {
 public:
  explicit Partitioner(const PointSums& points);

  /// The best partition at these prices (in scaled units).
  Partition solve(double cluster_price, double outlier_price);

  /// The best partition into exactly `count` clusters, fewer only if there are fewer points. `cluster_price` is where
  /// the search starts (<= 0: unknown) and afterwards the price found.
  Partition solve_count(int32_t count, double outlier_price, double& cluster_price);

 private:
  struct State {
    double weight, sum;  // as in Node
    double cost;         // cheapest - the Node's square: what a cluster that begins here has cost so far
    double cheapest;     // least cost of the points before this one
  };
  double cost_at(int32_t begin, int32_t end) const noexcept;
  void add_candidate(int32_t begin);
  Partition path() const;
  Partition splice(const Partition& few, const Partition& many, int32_t count, double outlier_price) const;
  Cluster best_cluster(Cluster room, std::span<const Cluster> starts, double outlier_price) const;
  int32_t node(const Partition& partition, int32_t index) const noexcept;

  const PointSums& points_;
  std::vector<State> states_;       // [n + 1]
  std::vector<int32_t> parent_;     // [n + 1] where the cluster that ends here begins; -1: the last point is an outlier
  std::vector<int32_t> candidate_;  // cluster beginnings, each the best for ends from since_ on until the next one's
  std::vector<int32_t> since_;
  size_t head_ = 0;
};

}  // namespace hxq
