#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/grouped/scale_steps.h"

namespace hxq {

/// Numbers of scales: every `stride`-th of [begin, end), and then those around the best one of these.
struct ScaleRange {
  int begin = 0;
  int end = 0;
  int stride = 1;
};

/// Finds the scale at which levels come closest to a group of weights: the least sum of (w - scale * nearest level)^2.
class ScaleSearch {
 public:
  /// `levels`: ascending, at least two, not all 0. `scales`: positive.
  ScaleSearch(std::span<const float> levels, std::span<const float> scales);
  ScaleSearch(const ScaleSearch&) = delete;
  ScaleSearch& operator=(const ScaleSearch&) = delete;

  struct Choice {
    int scale = 0;     ///< its number
    double error = 0;  ///< the sum of squares, if it was asked for
  };
  /// The best scale of the range, or the best of their negatives. Errors of all are estimated with a table, and those
  /// of the ones that come within its precision of the least are then worked out.
  Choice best(std::span<const float> weights, ScaleRange range, bool is_negative, bool wants_error) const noexcept;

  double error(std::span<const float> weights, int scale, bool is_negative) const noexcept;

  /// The index of the nearest level for each weight, and what `unit`, which may be other than the scale, makes of it.
  void quantize(std::span<const float> weights, int scale, bool is_negative, float unit, std::span<uint8_t> index,
                std::span<float> decoded) const noexcept;

  /// What all this is found in.
  const LevelCells& cells() const noexcept { return cells_; }

 private:
  static constexpr int kMaxScales = 256;

  bool find_few(std::span<const uint8_t> middle) noexcept;
  float estimate(std::span<const float> weights, ScaleRange range, bool is_negative,
                 std::span<float> estimates) const noexcept;
  /// [scales] 1 / scale, or their negatives.
  const float* inverses(bool is_negative) const noexcept {
    return inverses_.data() + (is_negative ? scales_.size() : 0);
  }

  std::vector<float> levels_, ends_, middle_;  // of cells_
  std::vector<uint8_t> first_;
  FewLevels few_ = {};
  LevelCells cells_ = {};
  std::vector<float> scales_, inverses_;  ///< [scales], [2, scales] 1 / scale and -1 / scale
};

}  // namespace hxq
