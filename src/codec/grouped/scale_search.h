#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hxq {

/// Numbers of scales: every `stride`-th of [begin, end), and then those around the best one of these.
struct ScaleRange {
  int begin = 0;
  int end = 0;
  int stride = 1;
};

/// The least and the largest of some weights.
struct Extremes {
  float least = 0;
  float largest = 0;
};

/// `weights`: at least one.
Extremes extremes_of(std::span<const float> weights) noexcept;

/// Finds the scale at which levels come closest to a group of weights: the least sum of (w - scale * nearest level)^2.
class ScaleSearch {
 public:
  /// `levels`: ascending, at least two, not all 0. `scales`: positive.
  ScaleSearch(std::span<const float> levels, std::span<const float> scales);

  struct Choice {
    int scale = 0;     ///< its number
    double error = 0;  ///< the sum of squares
  };
  /// The best scale of the range. Errors of all are estimated with a table, and those of the ones that come within its
  /// precision of the least are then worked out.
  /// `extremes`: of the weights.
  Choice best(std::span<const float> weights, Extremes extremes, ScaleRange range) const noexcept;

  double error(std::span<const float> weights, int scale) const noexcept;

  /// The index of the nearest level for each weight.
  void quantize(std::span<const float> weights, int scale, std::span<uint8_t> index) const noexcept;

 private:
  static constexpr int kMaxScales = 256;

  size_t nearest(float x) const noexcept;
  float estimate(std::span<const float> weights, Extremes extremes, int scale, float enough) const noexcept;

  std::vector<float> levels_;
  std::vector<float> ends_;     // [k] what is larger belongs to a later level; the last one is infinite
  std::vector<uint8_t> first_;  // [cells] no earlier level is the nearest of a number in the cell
  std::vector<float> level_;    // [cells] the level that is nearest to the cell's middle
  std::vector<float> scales_;
  float cells_per_unit_ = 1, origin_ = 0;  // the cell of x is x * cells_per_unit_ + origin_, rounded down
  float low_ = 0, high_ = 0;               // what the cells cover
};

}  // namespace hxq
