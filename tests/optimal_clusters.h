#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace hxq::testing {

/// Squared error of a run of ascending values about its mean, from sums about a value near the middle.
class RunError {
 public:
  explicit RunError(std::span<const double> ascending)
      : ascending_(ascending), sums_(ascending.size() + 1), squares_(ascending.size() + 1) {
    const auto origin = static_cast<long double>(ascending.empty() ? 0 : ascending[ascending.size() / 2]);
    for (size_t i = 0; i < ascending.size(); ++i) {
      const long double x = ascending[i] - origin;
      sums_[i + 1] = sums_[i] + x;
      squares_[i + 1] = squares_[i] + x * x;
    }
  }
  /// Of values [begin, end), end > begin.
  double operator()(size_t begin, size_t end) const {
    if (ascending_[begin] == ascending_[end - 1]) return 0;
    const long double sum = sums_[end] - sums_[begin];
    const long double error = squares_[end] - squares_[begin] - sum * sum / static_cast<long double>(end - begin);
    return error > 0 ? static_cast<double>(error) : 0;
  }

 private:
  std::span<const double> ascending_;
  std::vector<long double> sums_, squares_;
};

/// Least squared error of at most k clusters of ascending values: the textbook recurrence, every split tried. O(k n^2).
inline double exhaustive_error(std::span<const double> ascending, int k) {
  const size_t n = ascending.size();
  const RunError error(ascending);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> best(n + 1, kInfinity);
  best[0] = 0;
  for (int clusters = 0; clusters < k; ++clusters) {
    for (size_t end = n; end > 0; --end) {
      for (size_t begin = 0; begin < end; ++begin) {
        if (best[begin] < kInfinity) best[end] = std::min(best[end], best[begin] + error(begin, end));
      }
    }
  }
  return best[n];
}

/// The same by divide and conquer on the monotone split points, O(k n log n).
inline double divide_and_conquer_error(std::span<const double> ascending, int k) {
  const size_t n = ascending.size();
  const RunError error(ascending);
  std::vector<double> before(n + 1, std::numeric_limits<double>::infinity()), now(n + 1);
  before[0] = 0;
  struct Solve {
    const RunError& error;
    const std::vector<double>& before;
    std::vector<double>& now;
    void operator()(size_t low, size_t high, size_t first,
                    size_t last) const {  // ends [low, high), begins [first, last]
      if (low >= high) return;
      const size_t middle = low + (high - low) / 2;
      size_t best_begin = first;
      now[middle] = before[middle];
      for (size_t begin = first; begin <= last && begin < middle; ++begin) {
        const double cost = before[begin] + error(begin, middle);
        if (cost < now[middle]) {
          now[middle] = cost;
          best_begin = begin;
        }
      }
      (*this)(low, middle, first, best_begin);
      (*this)(middle + 1, high, best_begin, last);
    }
  };
  for (int clusters = 0; clusters < k; ++clusters) {
    Solve{error, before, now}(0, n + 1, 0, n);
    before = now;
  }
  return before[n];
}

}  // namespace hxq::testing
