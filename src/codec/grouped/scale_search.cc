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

ScaleSearch::ScaleSearch(std::span<const float> levels, std::span<const float> scales)
    : levels_(levels.begin(), levels.end()), scales_(scales.begin(), scales.end()) {
  for (const float scale : scales_) inverses_.push_back(1 / scale);
  for (size_t i = 0; i + 1 < levels_.size(); ++i) ends_.push_back((levels_[i] + levels_[i + 1]) / 2);
  ends_.push_back(kInfinity);
  for (size_t i = 0; i < levels_.size(); ++i) {
    is_whole_ = is_whole_ && levels_[i] == std::nearbyint(levels_[0]) + static_cast<float>(i);
  }
  const float margin = (levels_.back() - levels_.front()) / 8;
  low_ = levels_.front() - margin;
  high_ = levels_.back() + margin;
  const int cells = cell_count(levels_.size());
  const double width = (static_cast<double>(high_) - low_) / (cells - 2);  // one cell to spare on either side
  cells_per_unit_ = static_cast<float>(1 / width);
  origin_ = 1 - low_ * cells_per_unit_;
  std::vector<uint8_t> middles;
  size_t first = 0, middle = 0;
  for (int cell = 0; cell < cells; ++cell) {
    const double begin = low_ + width * (cell - 1);
    while (begin - kCellSlack * width > ends_[first]) ++first;
    while (begin + width / 2 > ends_[middle]) ++middle;
    if (first + 1 < ends_.size() && begin + (1 + kCellSlack) * width > ends_[first + 1]) has_single_ends_ = false;
    first_.push_back(static_cast<uint8_t>(first));
    middle_.push_back(levels_[middle]);
    middles.push_back(static_cast<uint8_t>(middle));
  }
  first_.insert(first_.end(), 3, 0);
  is_few_ = find_few(middles);
}

/// Fills few_, if it can hold the levels of the cells' middles.
bool ScaleSearch::find_few(std::span<const uint8_t> middle) noexcept {
  constexpr size_t kParts = std::size(FewLevels{}.changes), kLevels = std::size(FewLevels{}.levels);
  if (levels_.size() > kLevels) return false;
  std::ranges::copy(levels_, few_.levels);
  const size_t width = middle.size() / kParts;
  for (size_t part = 0; part < kParts; ++part) {
    size_t change = (part + 1) * width;
    for (size_t cell = part * width + 1; cell < (part + 1) * width; ++cell) {
      if (middle[cell] == middle[cell - 1]) continue;
      if (change < cell || middle[cell] != middle[cell - 1] + 1) return false;
      change = cell;
    }
    few_.changes[part] = static_cast<int32_t>(change * 256 + middle[part * width]);
  }
  return true;
}

LevelCells ScaleSearch::cells() const noexcept {
  return {.levels = levels_.data(),
          .ends = ends_.data(),
          .first = first_.data(),
          .middle = middle_.data(),
          .cells_per_unit = cells_per_unit_,
          .origin = origin_,
          .low = low_,
          .high = high_,
          .has_single_ends = has_single_ends_,
          .is_whole = is_whole_,
          .least = levels_.front(),
          .largest = levels_.back(),
          .few = is_few_ ? &few_ : nullptr};
}

/// estimates[scale] of the scales of the range that have none, the error by the table; returns the least of the range.
float ScaleSearch::estimate(std::span<const float> weights, ScaleRange range,
                            std::span<float> estimates) const noexcept {
  const auto begin = static_cast<size_t>(range.begin), end = static_cast<size_t>(range.end);
  const auto stride = static_cast<size_t>(range.stride);
  std::array<float, kMaxScales> inverses, sums;
  size_t count = 0;
  for (size_t scale = begin; scale < end; scale += stride) {
    if (estimates[scale] == kInfinity) inverses[count++] = inverses_[scale];
  }
  scale_steps().estimate(cells(), weights.data(), weights.size(), inverses.data(), count, sums.data());
  count = 0;
  float least = kInfinity;
  for (size_t scale = begin; scale < end; scale += stride) {
    if (estimates[scale] == kInfinity) estimates[scale] = squared(scales_[scale]) * sums[count++];
    least = std::min(least, estimates[scale]);
  }
  return least;
}

double ScaleSearch::error(std::span<const float> weights, int scale) const noexcept {
  const float unit = scales_[static_cast<size_t>(scale)];
  return scale_steps().error(cells(), weights.data(), weights.size(), unit, inverses_[static_cast<size_t>(scale)]);
}

ScaleSearch::Choice ScaleSearch::best(std::span<const float> weights, ScaleRange range,
                                      bool wants_error) const noexcept {
  std::array<float, kMaxScales> estimates;
  const auto begin = estimates.begin() + range.begin, end = estimates.begin() + range.end;
  std::fill(begin, end, kInfinity);
  float least = estimate(weights, range, estimates);
  auto at = static_cast<int>(std::find(begin, end, least) - estimates.begin());
  if (range.stride > 1) {
    const int first = std::max(range.begin, at - range.stride + 1), last = std::min(range.end, at + range.stride);
    const float around = estimate(weights, {first, last, 1}, estimates);
    if (around < least) at = static_cast<int>(std::find(begin, end, around) - estimates.begin()), least = around;
  }
  const float limit = least * (1 + precision_for(levels_.size()));
  Choice choice{.scale = at};
  bool is_known = false;
  for (int scale = range.begin; scale < range.end; ++scale) {
    if (estimates[static_cast<size_t>(scale)] > limit || scale == at) continue;
    if (!is_known) choice.error = error(weights, at), is_known = true;
    if (const double found = error(weights, scale); found < choice.error) choice = {scale, found};
  }
  if (wants_error && !is_known) choice.error = error(weights, at);
  return choice;
}

void ScaleSearch::quantize(std::span<const float> weights, int scale, std::span<uint8_t> index) const noexcept {
  const float inverse = inverses_[static_cast<size_t>(scale)];
  scale_steps().quantize(cells(), weights.data(), weights.size(), inverse, index.data());
}

}  // namespace hxq
