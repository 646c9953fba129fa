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
  for (const float sign : {1.0f, -1.0f}) {
    for (const float scale : scales_) inverses_.push_back(sign / scale);
  }
  for (size_t i = 0; i + 1 < levels_.size(); ++i) ends_.push_back((levels_[i] + levels_[i + 1]) / 2);
  ends_.push_back(kInfinity);
  bool has_single_ends = true, is_whole = true;
  for (size_t i = 0; i < levels_.size(); ++i) {
    is_whole = is_whole && levels_[i] == std::nearbyint(levels_[0]) + static_cast<float>(i);
  }
  const float margin = (levels_.back() - levels_.front()) / 8;
  const float low = levels_.front() - margin, high = levels_.back() + margin;
  const int cells = cell_count(levels_.size());
  const double width = (static_cast<double>(high) - low) / (cells - 2);  // one cell to spare on either side
  const auto cells_per_unit = static_cast<float>(1 / width);
  std::vector<uint8_t> middles;
  size_t first = 0, middle = 0;
  for (int cell = 0; cell < cells; ++cell) {
    const double begin = low + width * (cell - 1);
    while (begin - kCellSlack * width > ends_[first]) ++first;
    while (begin + width / 2 > ends_[middle]) ++middle;
    if (first + 1 < ends_.size() && begin + (1 + kCellSlack) * width > ends_[first + 1]) has_single_ends = false;
    first_.push_back(static_cast<uint8_t>(first));
    middle_.push_back(levels_[middle]);
    middles.push_back(static_cast<uint8_t>(middle));
  }
  first_.insert(first_.end(), 3, 0);
  cells_ = {.levels = levels_.data(),
            .ends = ends_.data(),
            .first = first_.data(),
            .middle = middle_.data(),
            .cells_per_unit = cells_per_unit,
            .origin = 1 - low * cells_per_unit,
            .low = low,
            .high = high,
            .has_single_ends = has_single_ends,
            .is_whole = is_whole,
            .least = levels_.front(),
            .largest = levels_.back(),
            .few = find_few(middles) ? &few_ : nullptr};
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

/// estimates[scale] of the scales of the range: the error by the table. Returns the least of them.
float ScaleSearch::estimate(std::span<const float> weights, ScaleRange range, bool is_negative,
                            std::span<float> estimates) const noexcept {
  const auto begin = static_cast<size_t>(range.begin), stride = static_cast<size_t>(range.stride);
  const size_t count = (static_cast<size_t>(range.end) - begin + stride - 1) / stride;
  std::array<float, kMaxScales> some, sums;
  const float* of_these = inverses(is_negative) + begin;
  if (stride > 1) {
    for (size_t i = 0; i < count; ++i) some[i] = of_these[i * stride];
    of_these = some.data();
  }
  scale_steps().estimate(cells_, weights.data(), weights.size(), of_these, count, sums.data());
  for (size_t i = 0; i < count; ++i) {
    sums[i] *= squared(scales_[begin + i * stride]);
    estimates[begin + i * stride] = sums[i];
  }
  return scale_steps().extremes(sums.data(), count).least;
}

double ScaleSearch::error(std::span<const float> weights, int scale, bool is_negative) const noexcept {
  const auto at = static_cast<size_t>(scale);
  const float unit = is_negative ? -scales_[at] : scales_[at];
  return scale_steps().error(cells_, weights.data(), weights.size(), unit, inverses(is_negative)[at]);
}

ScaleSearch::Choice ScaleSearch::best(std::span<const float> weights, ScaleRange range, bool is_negative,
                                      bool wants_error) const noexcept {
  std::array<float, kMaxScales> estimates;
  const auto begin = estimates.begin() + range.begin, end = estimates.begin() + range.end;
  if (range.stride > 1) std::fill(begin, end, kInfinity);
  float least = estimate(weights, range, is_negative, estimates);
  auto at = static_cast<int>(std::find(begin, end, least) - estimates.begin());
  if (range.stride > 1) {
    const int first = std::max(range.begin, at - range.stride + 1), last = std::min(range.end, at + range.stride);
    const float around = estimate(weights, {first, last, 1}, is_negative, estimates);
    if (around < least) at = static_cast<int>(std::find(begin, end, around) - estimates.begin()), least = around;
  }
  const float limit = least * (1 + precision_for(levels_.size()));
  Choice choice{.scale = at};
  bool is_known = false;
  for (int scale = range.begin; scale < range.end; ++scale) {
    if (estimates[static_cast<size_t>(scale)] > limit || scale == at) continue;
    if (!is_known) choice.error = error(weights, at, is_negative), is_known = true;
    if (const double found = error(weights, scale, is_negative); found < choice.error) choice = {scale, found};
  }
  if (wants_error && !is_known) choice.error = error(weights, at, is_negative);
  return choice;
}

void ScaleSearch::quantize(std::span<const float> weights, int scale, bool is_negative, float unit,
                           std::span<uint8_t> index, std::span<float> decoded) const noexcept {
  const float inverse = inverses(is_negative)[static_cast<size_t>(scale)];
  scale_steps().quantize(cells_, weights.data(), weights.size(), inverse, unit, index.data(), decoded.data());
}

}  // namespace hxq
