#include "codec/codebook/segments.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "codec/codebook/fit.h"

namespace hxq {
namespace {

constexpr int kLeastCells = 3, kMostCells = 20;  // of the best 256 levels that become a segment's 8
constexpr int kLineTurns = 3, kPolishTurns = 30;

/// Values of elements in ascending order with running sums, in a unit in which the largest magnitude is 1.
class Sums {
 public:
  Sums(const ValueHistogram& histogram, std::span<const int64_t> outliers) {
    for (size_t i = 0; i < histogram.size(); ++i) {
      if (histogram.count[i] > outliers[i]) unit_ = std::max(unit_, std::fabs(histogram.value[i]));
    }
    double weight = 0, sum = 0, square = 0;
    const auto note = [&] {
      weight_.push_back(weight);
      sum_.push_back(sum);
      square_.push_back(square);
    };
    note();
    for (size_t i = 0; i < histogram.size(); ++i) {
      const auto count = static_cast<double>(histogram.count[i] - outliers[i]);
      if (count == 0) continue;
      const double value = histogram.value[i] / unit_;
      value_.push_back(value);
      weight += count;
      sum += count * value;
      square += count * value * value;
      note();
    }
  }

  double unit() const { return unit_; }
  size_t size() const { return value_.size(); }
  /// The first value above x.
  size_t above(double x) const { return static_cast<size_t>(std::ranges::upper_bound(value_, x) - value_.begin()); }
  double weight(size_t begin, size_t end) const { return weight_[end] - weight_[begin]; }
  double sum(size_t begin, size_t end) const { return sum_[end] - sum_[begin]; }
  double square(size_t begin, size_t end) const { return square_[end] - square_[begin]; }

 private:
  double unit_ = std::numeric_limits<double>::min();
  std::vector<double> value_, weight_, sum_, square_;
};

struct Line {
  double base = 0, slope = 0;

  double at(int step) const { return base + slope * step; }
};

/// What the values of a segment sum up to, each assigned to a step of a line.
struct Moments {
  double weight = 0, step = 0, step2 = 0, sum = 0, sum_step = 0, square = 0;

  Moments(const Sums& sums, size_t begin, size_t end, Line line) {
    size_t from = begin;
    for (int l = 0; l < kSegmentSteps; ++l) {
      const size_t to = l + 1 == kSegmentSteps ? end : std::clamp(sums.above(line.at(l) + line.slope / 2), from, end);
      const double w = sums.weight(from, to), s = sums.sum(from, to);
      weight += w;
      step += w * l;
      step2 += w * l * l;
      sum += s;
      sum_step += s * l;
      from = to;
    }
    square = sums.square(begin, end);
  }

  double error(Line line) const {
    const double b = line.base, s = line.slope;
    return square - 2 * (b * sum + s * sum_step) + b * b * weight + 2 * b * s * step + s * s * step2;
  }
  double best_base(double slope) const { return (sum - slope * step) / weight; }
  /// The line of the least error; `line` where it is not told.
  Line best(Line line) const {
    const double determinant = weight * step2 - step * step;
    if (!(determinant > 1e-9 * weight * step2)) return line;
    const double slope = (weight * sum_step - step * sum) / determinant;
    return {best_base(slope), slope};
  }
};

/// A run of values between two borders.
struct Interval {
  double low, high;
  size_t begin, end;
};

/// The same line with all steps inside the interval, so that those of neighbours do not cross.
Line inside(Line line, const Interval& in) {
  const double low = std::clamp(line.base, in.low, in.high);
  const double high = std::clamp(line.at(kSegmentSteps - 1), low, in.high);
  return {low, (high - low) / (kSegmentSteps - 1)};
}

Line fit_line(const Sums& sums, const Interval& in, Line line) {
  for (int turn = 0; turn < kLineTurns; ++turn) line = inside(Moments(sums, in.begin, in.end, line).best(line), in);
  return line;
}

Line even_line(const Interval& in) {
  const double slope = (in.high - in.low) / kSegmentSteps;
  return {in.low + slope / 2, slope};
}

/// Borders of the cells of the best levels, from below all values to above them.
std::vector<double> borders_of(std::span<const float> levels, double unit) {
  std::vector<double> borders = {-1};
  for (const double threshold : thresholds_of(levels)) borders.push_back(threshold / unit);
  borders.push_back(1);
  return borders;
}

/// Lines of 32 runs of cells with the least sum of their errors.
std::array<Line, kSegments> cut(const Sums& sums, std::span<const double> borders) {
  const int cells = static_cast<int>(borders.size()) - 1;
  std::vector<size_t> at;
  for (const double border : borders) at.push_back(sums.above(border));
  at.front() = 0;
  at.back() = sums.size();
  struct Way {
    double error = std::numeric_limits<double>::infinity();
    int cells = 0;  // of its last segment
    Line line = {};
  };
  std::vector<std::array<Way, kSegments + 1>> best(static_cast<size_t>(cells) + 1);
  best[0][0].error = 0;
  for (int end = 1; end <= cells; ++end) {
    for (int count = kLeastCells; count <= std::min(kMostCells, end); ++count) {
      const auto to = static_cast<size_t>(end), from = static_cast<size_t>(end - count);
      const Interval in{borders[from], borders[to], at[from], at[to]};
      Line line = even_line(in);
      double error = 0;
      if (in.begin < in.end) {
        line = fit_line(sums, in, line);
        error = std::max(0.0, Moments(sums, in.begin, in.end, line).error(line));
      }
      for (size_t segments = 0; segments < kSegments; ++segments) {
        const double all = best[from][segments].error + error;
        if (all < best[to][segments + 1].error) best[to][segments + 1] = {all, count, line};
      }
    }
  }
  std::array<Line, kSegments> lines;
  int end = cells;
  for (size_t segments = kSegments; segments > 0; --segments) {
    const Way& way = best[static_cast<size_t>(end)][segments];
    lines[segments - 1] = way.line;
    end -= way.cells;
  }
  return lines;
}

/// Values to the nearest level and lines to the values, in turn until the error falls no more.
void polish(const Sums& sums, std::array<Line, kSegments>& lines) {
  double least = std::numeric_limits<double>::infinity();
  for (int turn = 0; turn < kPolishTurns; ++turn) {
    std::array<Line, kSegments> next = lines;
    double error = 0, low = -1;
    size_t begin = 0;
    for (size_t h = 0; h < kSegments; ++h) {
      const bool last = h + 1 == kSegments;
      const double high = last ? 1 : (lines[h].at(kSegmentSteps - 1) + lines[h + 1].base) / 2;
      const size_t end = last ? sums.size() : std::max(begin, sums.above(high));
      if (begin < end) {
        const Moments moments(sums, begin, end, lines[h]);
        error += moments.error(lines[h]);
        next[h] = inside(moments.best(lines[h]), {low, high, begin, end});
      }
      low = high;
      begin = end;
    }
    if (!(error < least * (1 - 1e-5))) return;
    least = error;
    lines = next;
  }
}

/// What levels of a magnitude are whole multiples of, in units of the smallest: binary16 numbers have 11 bits.
double grain_of(double magnitude) { return std::ldexp(1.0, std::max(0, std::ilogb(std::max(magnitude, 1.0)) - 10)); }

double furthest(Line line) { return std::max(std::fabs(line.base), std::fabs(line.at(kSegmentSteps - 1))); }

/// The line of whole numbers that costs least, with a slope of a byte times 2^shift. `moments`: of the values, in the
/// same unit.
Line whole_line(Line line, const Moments& moments, int shift) {
  const double byte = std::ldexp(1.0, shift);
  Line best = line;
  for (double grain = grain_of(furthest(line));; grain *= 2) {
    const double step = std::max(grain, byte), lower = std::floor(line.slope / step);
    double least = std::numeric_limits<double>::infinity();
    for (const double steps : {lower, lower + 1}) {
      const double slope = std::clamp(steps * step, step, std::floor(255 * byte / step) * step);
      const double base = moments.weight > 0 ? moments.best_base(slope) : line.base;
      const Line whole{std::nearbyint(base / grain) * grain, slope};
      const double error = moments.weight > 0 ? moments.error(whole) : std::fabs(slope - line.slope);
      if (error < least) best = whole, least = error;
    }
    if (grain_of(furthest(best)) <= grain) return best;
  }
}

struct Rounded {
  std::vector<float> levels = {};
  double error = 0;
};

/// Ascending levels of the lines, whole multiples of `scale`.
Rounded round_lines(const Sums& sums, const std::array<Line, kSegments>& lines, double scale, int shift) {
  const double to_whole = sums.unit() / scale;
  Rounded found;
  double top = -std::numeric_limits<double>::infinity();
  size_t begin = 0;
  for (size_t h = 0; h < kSegments; ++h) {
    const bool last = h + 1 == kSegments;
    const double high = last ? 1 : (lines[h].at(kSegmentSteps - 1) + lines[h + 1].base) / 2;
    const size_t end = last ? sums.size() : std::max(begin, sums.above(high));
    Moments moments(sums, begin, end, lines[h]);
    moments.sum *= to_whole;
    moments.sum_step *= to_whole;
    moments.square *= to_whole * to_whole;
    Line whole = whole_line({lines[h].base * to_whole, lines[h].slope * to_whole}, moments, shift);
    while (whole.base <= top) whole.base += grain_of(furthest(whole));
    top = whole.at(kSegmentSteps - 1);
    found.error += moments.error(whole);
    for (int l = 0; l < kSegmentSteps; ++l) found.levels.push_back(static_cast<float>(whole.at(l) * scale) + 0.0f);
    begin = end;
  }
  return found;
}

}  // namespace

std::vector<float> segment_levels(const ValueHistogram& histogram, std::span<const int64_t> outliers,
                                  std::span<const float> levels) {
  const Sums sums(histogram, outliers);
  std::array<Line, kSegments> lines = cut(sums, borders_of(levels, sums.unit()));
  polish(sums, lines);
  // Levels are whole numbers below 2^15 of the unit 2^exponent.
  int exponent = std::ilogb(sums.unit()) - 14;
  if (std::ldexp(sums.unit(), -exponent) > 32000) ++exponent;
  Rounded best;
  for (int shift = 0; shift <= kMostSegmentShift; ++shift) {
    Rounded found = round_lines(sums, lines, std::ldexp(1.0, exponent), shift);
    if (best.levels.empty() || found.error < best.error) best = std::move(found);
  }
  return best.levels;
}

}  // namespace hxq
