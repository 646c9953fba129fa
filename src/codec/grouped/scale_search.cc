#include "codec/grouped/scale_search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace hxq {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Cells of the tables: few enough for a core's nearest cache.
int cell_count(size_t levels) { return levels > 64 ? 8192 : 4096; }

/// What rounding may move a number, as a share of a cell.
constexpr double kCellSlack = 0.01;

/// How far an estimate can well be off, as a share of it. It is only for numbers that lie between the middle of their
/// cell and the end of a level's reach: the square of the cell's share of the distance of levels.
float precision_for(size_t levels) { return levels > 128 ? 0.02f : 0.005f; }

float squared(float x) { return x * x; }

}  // namespace

Extremes extremes_of(std::span<const float> weights) noexcept {
  constexpr size_t kLanes = 8;  // that a processor may take at once
  std::array<float, kLanes> least, largest;
  least.fill(weights[0]);
  largest.fill(weights[0]);
  size_t i = 0;
  for (; i + kLanes <= weights.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      least[j] = std::min(least[j], weights[i + j]);
      largest[j] = std::max(largest[j], weights[i + j]);
    }
  }
  for (; i < weights.size(); ++i) {
    least[0] = std::min(least[0], weights[i]);
    largest[0] = std::max(largest[0], weights[i]);
  }
  return {std::ranges::min(least), std::ranges::max(largest)};
}

ScaleSearch::ScaleSearch(std::span<const float> levels, std::span<const float> scales)
    : levels_(levels.begin(), levels.end()), scales_(scales.begin(), scales.end()) {
  for (size_t i = 0; i + 1 < levels_.size(); ++i) ends_.push_back((levels_[i] + levels_[i + 1]) / 2);
  ends_.push_back(kInfinity);
  const float margin = (levels_.back() - levels_.front()) / 8;
  low_ = levels_.front() - margin;
  high_ = levels_.back() + margin;
  const int cells = cell_count(levels_.size());
  const double width = (static_cast<double>(high_) - low_) / (cells - 2);  // one cell to spare on either side
  cells_per_unit_ = static_cast<float>(1 / width);
  origin_ = 1 - low_ * cells_per_unit_;
  size_t first = 0, middle = 0;
  for (int cell = 0; cell < cells; ++cell) {
    const double begin = low_ + width * (cell - 1);
    while (begin - kCellSlack * width > ends_[first]) ++first;
    while (begin + width / 2 > ends_[middle]) ++middle;
    first_.push_back(static_cast<uint8_t>(first));
    level_.push_back(levels_[middle]);
  }
}

inline size_t ScaleSearch::nearest(float x) const noexcept {
  const float inside = std::min(std::max(x, low_), high_);
  size_t level = first_[static_cast<size_t>(static_cast<int>(inside * cells_per_unit_ + origin_))];
  while (x > ends_[level]) ++level;
  return level;
}

/// The error by the table. Where that does not reach, the error itself, or at least as much as `enough`.
float ScaleSearch::estimate(std::span<const float> weights, Extremes extremes, int scale, float enough) const noexcept {
  const auto [least, largest] = extremes;
  const float unit = scales_[static_cast<size_t>(scale)], inverse = 1 / unit;
  if (least * inverse < low_ || largest * inverse > high_) {
    const float furthest = squared(std::max(largest - unit * levels_.back(), unit * levels_.front() - least));
    return furthest >= enough ? furthest : static_cast<float>(error(weights, scale));
  }
  constexpr size_t kBlock = 128;
  std::array<int32_t, kBlock> cell;
  std::array<float, kBlock> x;
  std::array<float, 4> sums = {};
  for (size_t begin = 0; begin < weights.size(); begin += kBlock) {
    const size_t count = std::min(kBlock, weights.size() - begin);
    const float* block = weights.data() + begin;
    for (size_t i = 0; i < count; ++i) {
      x[i] = block[i] * inverse;
      cell[i] = static_cast<int32_t>(x[i] * cells_per_unit_ + origin_);
    }
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
      for (size_t j = 0; j < 4; ++j) sums[j] += squared(x[i + j] - level_[static_cast<size_t>(cell[i + j])]);
    }
    for (; i < count; ++i) sums[0] += squared(x[i] - level_[static_cast<size_t>(cell[i])]);
  }
  return squared(unit) * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

double ScaleSearch::error(std::span<const float> weights, int scale) const noexcept {
  const float unit = scales_[static_cast<size_t>(scale)], inverse = 1 / unit;
  std::array<double, 4> sums = {};
  const auto squared_error = [&](float w) {
    const double distance = w - unit * levels_[nearest(w * inverse)];
    return distance * distance;
  };
  size_t i = 0;
  for (; i + 4 <= weights.size(); i += 4) {
    for (size_t j = 0; j < 4; ++j) sums[j] += squared_error(weights[i + j]);
  }
  for (; i < weights.size(); ++i) sums[0] += squared_error(weights[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

ScaleSearch::Choice ScaleSearch::best(std::span<const float> weights, Extremes extremes,
                                      ScaleRange range) const noexcept {
  std::array<float, kMaxScales> estimates;
  float least = kInfinity;  // estimate
  int at = range.begin;
  const auto look = [&](int scale) {
    const float found = estimates[static_cast<size_t>(scale)] = estimate(weights, extremes, scale, least * 2);
    if (found < least) least = found, at = scale;
  };
  std::fill(estimates.begin() + range.begin, estimates.begin() + range.end, kInfinity);
  for (int scale = range.begin; scale < range.end; scale += range.stride) look(scale);
  const int last = std::min(range.end, at + range.stride);
  for (int scale = std::max(range.begin, at - range.stride + 1); scale < last; ++scale) {
    if (estimates[static_cast<size_t>(scale)] == kInfinity) look(scale);
  }
  Choice choice{at, error(weights, at)};
  const float limit = least * (1 + precision_for(levels_.size()));
  for (int scale = range.begin; scale < range.end; ++scale) {
    if (estimates[static_cast<size_t>(scale)] > limit || scale == at) continue;
    if (const double found = error(weights, scale); found < choice.error) choice = {scale, found};
  }
  return choice;
}

void ScaleSearch::quantize(std::span<const float> weights, int scale, std::span<uint8_t> index) const noexcept {
  const float inverse = 1 / scales_[static_cast<size_t>(scale)];
  for (size_t i = 0; i < weights.size(); ++i) index[i] = static_cast<uint8_t>(nearest(weights[i] * inverse));
}

}  // namespace hxq
