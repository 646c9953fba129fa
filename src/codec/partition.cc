#include "codec/partition.h"

#include <algorithm>
#include <cmath>

namespace hxq {

PointSums::PointSums(std::span<const double> position, std::span<const double> weight) : nodes_(position.size() + 1) {
  const size_t n = position.size();
  double total = 0;
  for (double w : weight) total += w;
  size_t median = 0;
  for (double below = weight[0]; below * 2 < total; below += weight[++median]) {
  }
  origin_ = position[median];
  const double reach = std::max(position[n - 1] - origin_, origin_ - position[0]);
  unit_ = reach > 0 ? std::ldexp(1.0, std::ilogb(reach) + 1) : 1.0;

  const auto scaled = [&](size_t i) { return (position[i] - origin_) / unit_; };
  nodes_[median] = {};
  for (size_t i = median; i < n; ++i) {
    const double x = scaled(i);
    nodes_[i + 1] = {nodes_[i].weight + weight[i], nodes_[i].sum + weight[i] * x, nodes_[i].square + weight[i] * x * x};
  }
  for (size_t i = median; i-- > 0;) {
    const double x = scaled(i);
    nodes_[i] = {nodes_[i + 1].weight - weight[i], nodes_[i + 1].sum - weight[i] * x,
                 nodes_[i + 1].square - weight[i] * x * x};
  }
}

double PointSums::mean(int32_t begin, int32_t end) const noexcept {
  return origin_ + unit_ * ((nodes_[end].sum - nodes_[begin].sum) / weight(begin, end));
}

double PointSums::squared_error(int32_t begin, int32_t end) const noexcept {
  if (end - begin == 1) return 0;
  const double sum = nodes_[end].sum - nodes_[begin].sum;
  return std::max(0.0, nodes_[end].square - nodes_[begin].square - sum * sum / weight(begin, end));
}

Partitioner::Partitioner(const PointSums& points)
    : points_(points),
      states_(points.nodes_.size()),
      parent_(points.nodes_.size()),
      candidate_(points.nodes_.size()),
      since_(points.nodes_.size()) {}

// Cost of the cheapest way to `end` whose last cluster begins at `begin`, less what is the same for every beginning.
inline double Partitioner::cost_at(int32_t begin, int32_t end) const noexcept {
  const State& from = states_[begin];
  const PointSums::Node& to = points_.nodes_[end];
  const double sum = to.sum - from.sum;
  return from.cost - sum * sum / (to.weight - from.weight);
}

// Keeps the queue of beginnings: once a later one is as good as an earlier one, it stays so for every further end.
void Partitioner::add_candidate(int32_t begin) {
  const int32_t n = points_.size();
  int32_t first = begin + 1;
  while (candidate_.size() > head_) {
    const int32_t rival = candidate_.back();
    const int32_t since = std::max(since_.back(), begin + 1);
    if (cost_at(begin, since) > cost_at(rival, since)) {
      // The first end from which `begin` is as good lies in (worse, first]; the steps grow, then halve.
      int32_t worse = since;
      int32_t step = 1;
      first = since + 1;
      while (first <= n && cost_at(begin, first) > cost_at(rival, first)) {
        worse = first;
        step *= 2;
        first = std::min(first + step, first == n ? n + 1 : n);
      }
      while (first - worse > 1) {
        const int32_t middle = worse + (first - worse) / 2;
        (cost_at(begin, middle) > cost_at(rival, middle) ? worse : first) = middle;
      }
      break;
    }
    candidate_.pop_back();
    since_.pop_back();
  }
  if (first > n) return;
  candidate_.push_back(begin);
  since_.push_back(first);
}

Partition Partitioner::solve(double cluster_price, double outlier_price) {
  const int32_t n = points_.size();
  const auto& nodes = points_.nodes_;
  candidate_.clear();
  since_.clear();
  head_ = 0;
  for (int32_t end = 0; end <= n; ++end) {
    double cheapest = 0;
    if (end > 0) {
      while (head_ + 1 < candidate_.size() && since_[head_ + 1] <= end) ++head_;
      const int32_t begin = candidate_[head_];
      const double as_cluster = states_[begin].cheapest + points_.squared_error(begin, end) + cluster_price;
      const double as_outlier = states_[end - 1].cheapest + outlier_price * points_.weight(end - 1, end);
      parent_[end] = as_outlier < as_cluster ? -1 : begin;
      cheapest = std::min(as_cluster, as_outlier);
    }
    states_[end] = {nodes[end].weight, nodes[end].sum, cheapest - nodes[end].square, cheapest};
    if (end < n) add_candidate(end);
  }
  return path();
}

Partition Partitioner::path() const {
  Partition partition;
  for (int32_t end = points_.size(); end > 0;) {
    const int32_t begin = parent_[end];
    if (begin < 0) {
      partition.outliers += points_.weight(end - 1, end);
      --end;
    } else {
      partition.clusters.push_back({begin, end});
      partition.error += points_.squared_error(begin, end);
      end = begin;
    }
  }
  std::reverse(partition.clusters.begin(), partition.clusters.end());
  return partition;
}

// Borders of a partition seen as a path from 0 to n: each part is a cluster with the outliers that follow it, the first
// one also with those that precede it.
int32_t Partitioner::node(const Partition& partition, int32_t index) const noexcept {
  if (index == 0) return 0;
  return index == partition.size() ? points_.size() : partition.clusters[index].begin;
}

// The cluster within `room` that is cheapest when the other points there are outliers: from the best of the starts, the
// ends are moved in turn.
Cluster Partitioner::best_cluster(Cluster room, std::span<const Cluster> starts, double outlier_price) const {
  if (outlier_price == kNoOutliers) return room;
  Cluster best = room;
  double least = points_.squared_error(room.begin, room.end);
  const auto offer = [&](Cluster cluster) {
    if (cluster.begin < room.begin || cluster.end > room.end) return;
    const double cost =
        points_.squared_error(cluster.begin, cluster.end) +
        outlier_price * (points_.weight(room.begin, cluster.begin) + points_.weight(cluster.end, room.end));
    if (!(cost < least)) return;
    least = cost;
    best = cluster;
  };
  for (const Cluster& start : starts) offer(start);
  double before = std::numeric_limits<double>::infinity();
  while (least < before) {
    before = least;
    for (int32_t end = best.begin + 1; end <= room.end; ++end) offer({best.begin, end});
    for (int32_t begin = room.begin; begin < best.end; ++begin) offer({begin, best.end});
  }
  return best;
}

// Joins two partitions that are best at (nearly) the same price into one of `count` clusters that is as good: the first
// parts of `many`, one cluster across, the last parts of `few` (Aggarwal, Schieber and Tokuyama 1994).
Partition Partitioner::splice(const Partition& few, const Partition& many, int32_t count, double outlier_price) const {
  const int32_t shift = count - few.size();
  int32_t last = 0;
  while (node(few, last + 1) < node(many, last + 1 + shift)) ++last;

  Partition joined;
  joined.clusters.assign(many.clusters.begin(), many.clusters.begin() + last + shift);
  const int32_t begin = last + shift == 0 ? 0 : many.clusters[last + shift].begin;
  const Cluster starts[] = {few.clusters[last], many.clusters[last + shift]};
  joined.clusters.push_back(best_cluster({begin, node(few, last + 1)}, starts, outlier_price));
  joined.clusters.insert(joined.clusters.end(), few.clusters.begin() + last + 1, few.clusters.end());

  joined.outliers = points_.weight(0, points_.size());
  for (const Cluster& cluster : joined.clusters) {
    joined.error += points_.squared_error(cluster.begin, cluster.end);
    joined.outliers -= points_.weight(cluster.begin, cluster.end);
  }
  return joined;
}

Partition Partitioner::solve_count(int32_t count, double outlier_price, double& cluster_price) {
  count = std::min(count, points_.size());
  const double k = count;
  double price = cluster_price;
  // A level's worth falls with the cube of their number; exact for a smooth density, a start for any other.
  if (!(price > 0)) price = std::max(points_.squared_error(0, points_.size()) / (k * k * k), 1e-300);

  Partition few, many;
  double few_price = std::numeric_limits<double>::infinity();
  double many_price = 0;
  double stride = 1.02;
  constexpr int kMaxPasses = 80;
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    Partition partition = solve(price, outlier_price);
    cluster_price = price;
    if (partition.size() == count) return partition;
    const double guess = price * std::clamp(std::pow(std::max(partition.size(), 1) / k, 3.0), 1e-4, 1e4);
    if (partition.size() < count) {
      few = std::move(partition);
      few_price = price;
    } else {
      many = std::move(partition);
      many_price = price;
    }
    const bool bracketed = many_price > 0 && few_price < std::numeric_limits<double>::infinity();
    if (!bracketed) {
      price = many_price > 0 ? guess * stride : guess / stride;
      stride = std::min(stride * stride, 1e6);
      if (price < 1e-300 || price > 1e300) break;
      continue;
    }
    // What splicing can lose against the optimum, relative to its error of about k * price / 2.
    const double loss = (few_price / many_price - 1) * (many.size() - few.size()) * 2 / k;
    if (few.size() > 0 && loss < 1e-5) return splice(few, many, count, outlier_price);
    if (few_price / many_price < 1 + 1e-12) break;
    const double middle = std::sqrt(few_price) * std::sqrt(many_price);
    const bool inside = guess > many_price * 1.0001 && guess < few_price / 1.0001;
    price = inside && pass % 3 != 2 ? guess : middle;
  }
  return few;
}

}  // namespace hxq
