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

  struct Choice {
    int scale = 0;     ///< its number
    double error = 0;  ///< the sum of squares, if it was asked for
  };
  /// The best scale of the range. Errors of all are estimated with a table, and those of the ones that come within its
  /// precision of the least are then worked out.
  Choice best(std::span<const float> weights, ScaleRange range, bool wants_error) const noexcept;

  double error(std::span<const float> weights, int scale) const noexcept;

  /// The index of the nearest level for each weight.
  void quantize(std::span<const float> weights, int scale, std::span<uint8_t> index) const noexcept;

  /// What all this is found in.
  LevelCells cells() const noexcept;

 private:
  static constexpr int kMaxScales = 256;

  bool find_few(std::span<const uint8_t> middle) noexcept;
  float estimate(std::span<const float> weights, ScaleRange range, std::span<float> estimates) const noexcept;

  // As in LevelCells.
  std::vector<float> levels_, ends_, middle_;
  std::vector<uint8_t> first_;
  float cells_per_unit_ = 1, origin_ = 0, low_ = 0, high_ = 0;
  bool has_single_ends_ = true, is_whole_ = true, is_few_ = false;
  FewLevels few_ = {};
  std::vector<float> scales_, inverses_;  ///< 1 / scale
};

}  // namespace hxq
