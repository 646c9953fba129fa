#include "codec/grouped/scale_steps.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace hxq {
namespace {

int32_t cell_of(const LevelCells& cells, float x) {
  const float inside = std::min(std::max(x, cells.low), cells.high);
  return static_cast<int32_t>(inside * cells.cells_per_unit + cells.origin);
}

size_t nearest(const LevelCells& cells, float x) {
  size_t level = cells.first[static_cast<size_t>(cell_of(cells, x))];
  while (x > cells.ends[level]) ++level;
  return level;
}

/// Calls `add(lane, i)` for i from 0 to count - 1, for whole turns of lanes in a loop of constant length.
template <size_t kLanes, class Add>
void for_lanes(size_t count, Add add) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) add(lane, i + lane);
  }
  for (; i < count; ++i) add(i % kLanes, i);
}

/// The nearest level where levels are whole numbers. Adding what leaves no bits for fractions rounds.
float nearest_whole(const LevelCells& cells, float x) {
  constexpr float kShift = 0x1.8p23f;
  return (std::min(std::max(x, cells.least), cells.largest) + kShift) - kShift;
}

template <class T>
T sum_of_lanes(std::array<T, 16> sums) {
  for (size_t i = 0; i < 4; ++i) sums[i] = (sums[i] + sums[i + 8]) + (sums[i + 4] + sums[i + 12]);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

float estimate_whole(const LevelCells& cells, const float* weights, size_t count, float inverse) {
  std::array<float, 16> sums = {};
  for_lanes<16>(count, [&](size_t lane, size_t i) {
    const float x = weights[i] * inverse, distance = x - nearest_whole(cells, x);
    sums[lane] += distance * distance;
  });
  return sum_of_lanes(sums);
}

float estimate_scale(const LevelCells& cells, const float* weights, size_t count, float inverse) {
  constexpr size_t kBlock = 128;
  std::array<int32_t, kBlock> cell;
  std::array<float, kBlock> x;
  std::array<float, 16> sums = {};
  for (size_t begin = 0; begin < count; begin += kBlock, weights += kBlock) {
    const size_t block = std::min(kBlock, count - begin);
    for (size_t i = 0; i < block; ++i) {
      x[i] = weights[i] * inverse;
      cell[i] = cell_of(cells, x[i]);
    }
    for_lanes<16>(block, [&](size_t lane, size_t i) {
      const float distance = x[i] - cells.middle[cell[i]];
      sums[lane] += distance * distance;
    });
  }
  return sum_of_lanes(sums);
}

void estimate(const LevelCells& cells, const float* weights, size_t count, const float* inverses, size_t scales,
              float* sums) {
  const auto estimate_one = cells.is_whole ? estimate_whole : estimate_scale;
  for (size_t s = 0; s < scales; ++s) sums[s] = estimate_one(cells, weights, count, inverses[s]);
}

double error(const LevelCells& cells, const float* weights, size_t count, float unit, float inverse) {
  std::array<double, 4> sums = {};
  for_lanes<4>(count, [&](size_t lane, size_t i) {
    const double distance = weights[i] - unit * cells.levels[nearest(cells, weights[i] * inverse)];
    sums[lane] += distance * distance;
  });
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

void quantize(const LevelCells& cells, const float* weights, size_t count, float inverse, float unit, uint8_t* index,
              float* decoded) {
  for (size_t i = 0; i < count; ++i) {
    const size_t level = nearest(cells, weights[i] * inverse);
    index[i] = static_cast<uint8_t>(level);
    decoded[i] = unit * cells.levels[level];
  }
}

Extremes extremes(const float* weights, size_t count) {
  std::array<float, 16> least, largest;
  least.fill(weights[0]);
  largest.fill(weights[0]);
  for_lanes<16>(count, [&](size_t lane, size_t i) {
    least[lane] = std::min(least[lane], weights[i]);
    largest[lane] = std::max(largest[lane], weights[i]);
  });
  return {std::ranges::min(least), std::ranges::max(largest)};
}

Differences compare(const float* weights, size_t count, float factor, const float* decoded) {
  std::array<double, 16> signal = {}, of_decoded = {}, error = {};
  std::array<float, 16> largest = {};
  for_lanes<16>(count, [&](size_t lane, size_t i) {
    const float w = weights[i] * factor, d = decoded[i];
    const double difference = static_cast<double>(w) - d;
    signal[lane] += static_cast<double>(w) * w;
    of_decoded[lane] += static_cast<double>(d) * d;
    error[lane] += difference * difference;
    largest[lane] = std::max(largest[lane], std::fabs(w - d));
  });
  return {sum_of_lanes(signal), sum_of_lanes(of_decoded), sum_of_lanes(error), std::ranges::max(largest)};
}

const ScaleSteps& find_steps() noexcept {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return kAvx512ScaleSteps;
#endif
  return kScalarScaleSteps;
}

}  // namespace

constinit const ScaleSteps kScalarScaleSteps = {
    .extremes = extremes, .estimate = estimate, .error = error, .quantize = quantize, .compare = compare};

const ScaleSteps& scale_steps() noexcept {
  static const ScaleSteps& steps = find_steps();
  return steps;
}

}  // namespace hxq
