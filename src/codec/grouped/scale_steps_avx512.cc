// The loops of ScaleSteps for 16 weights at a time: gathers find their levels. Nothing of other headers is used, whose
// inline functions the linker could pick for the whole program.

#include <immintrin.h>

#include "codec/grouped/scale_steps.h"

namespace hxq {
namespace {

#define HXQ_ALWAYS_INLINE inline __attribute__((always_inline))

constexpr size_t kLanes = 16;

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using FourFloats = float __attribute__((vector_size(16)));
using FourDoubles = double __attribute__((vector_size(32)));
using EightFloats = float __attribute__((vector_size(32)));
using EightDoubles = double __attribute__((vector_size(64)));
using Bytes = uint8_t __attribute__((vector_size(16)));

HXQ_ALWAYS_INLINE Floats load(const float* from) {
  Floats v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

/// The first `count` weights and zeros after them; `count` is less than 16.
HXQ_ALWAYS_INLINE Floats load(const float* from, size_t count) {
  Floats v = {};
  __builtin_memcpy(&v, from, count * sizeof *from);
  return v;
}

/// Calls add(i, weights of 16 from i on, 16), and for what is left add(i, weights and zeros, how many).
template <class Add>
HXQ_ALWAYS_INLINE void for_vectors(const float* weights, size_t count, Add add) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, load(weights + i), kLanes);
  if (i < count) add(i, load(weights + i, count - i), count - i);
}

/// `v` in the first `count` lanes, zeros after them.
HXQ_ALWAYS_INLINE Floats first_lanes(Floats v, size_t count) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return count < kLanes ? reinterpret_cast<Floats>(reinterpret_cast<Ints>(v) & (lane < static_cast<int32_t>(count)))
                        : v;
}

template <int kPart>
HXQ_ALWAYS_INLINE FourFloats part_of(Floats v) {
  return __builtin_shufflevector(v, v, 4 * kPart, 4 * kPart + 1, 4 * kPart + 2, 4 * kPart + 3);
}

template <int kHalf>
HXQ_ALWAYS_INLINE EightFloats half_of(Floats v) {
  return __builtin_shufflevector(v, v, 8 * kHalf, 8 * kHalf + 1, 8 * kHalf + 2, 8 * kHalf + 3, 8 * kHalf + 4,
                                 8 * kHalf + 5, 8 * kHalf + 6, 8 * kHalf + 7);
}

HXQ_ALWAYS_INLINE Floats look_up(const float* table, Ints i) {
  return _mm512_i32gather_ps(reinterpret_cast<__m512i>(i), table, 4);
}

HXQ_ALWAYS_INLINE Ints look_up(const uint8_t* table, Ints i) {
  return reinterpret_cast<Ints>(_mm512_i32gather_epi32(reinterpret_cast<__m512i>(i), table, 1)) & 255;
}

HXQ_ALWAYS_INLINE Floats clamped(Floats x, float least, float largest) {
  return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(least)), _mm512_set1_ps(largest));
}

HXQ_ALWAYS_INLINE Ints cells_of(const LevelCells& cells, Floats x) {
  return __builtin_convertvector(clamped(x, cells.low, cells.high) * cells.cells_per_unit + cells.origin, Ints);
}

HXQ_ALWAYS_INLINE Ints nearest(const LevelCells& cells, Floats x) {
  __m512i level = reinterpret_cast<__m512i>(look_up(cells.first, cells_of(cells, x)));
  for (;;) {
    const Floats end = look_up(cells.ends, reinterpret_cast<Ints>(level));
    const __mmask16 is_later = _mm512_cmp_ps_mask(x, end, _CMP_GT_OQ);
    level = _mm512_mask_add_epi32(level, is_later, level, _mm512_set1_epi32(1));
    if (cells.has_single_ends || is_later == 0) return reinterpret_cast<Ints>(level);
  }
}

/// Finds the levels that estimates take.
struct AnyLevels {
  const LevelCells& cells;

  HXQ_ALWAYS_INLINE Floats operator()(Floats x) const { return look_up(cells.middle, cells_of(cells, x)); }
};

struct WholeLevels {
  const LevelCells& cells;

  HXQ_ALWAYS_INLINE Floats operator()(Floats x) const {
    return _mm512_roundscale_ps(clamped(x, cells.least, cells.largest), _MM_FROUND_TO_NEAREST_INT);
  }
};

/// A gather takes longer than all of this.
struct RegisterLevels {
  const LevelCells& cells;
  __m512i changes[4];
  __m512 levels[2];

  HXQ_ALWAYS_INLINE explicit RegisterLevels(const LevelCells& of)
      : cells(of), levels{_mm512_loadu_ps(of.few->levels), _mm512_loadu_ps(of.few->levels + 16)} {
    for (int i = 0; i < 4; ++i) changes[i] = _mm512_loadu_si512(of.few->changes + 16 * i);
  }

  HXQ_ALWAYS_INLINE Floats operator()(Floats x) const {
    const auto cell = reinterpret_cast<__m512i>(cells_of(cells, x));
    const __m512i part = _mm512_srli_epi32(cell, 6);  // of 64 cells
    const __m512i lower = _mm512_permutex2var_epi32(changes[0], part, changes[1]);
    const __m512i upper = _mm512_permutex2var_epi32(changes[2], part, changes[3]);
    const __mmask16 is_upper = _mm512_test_epi32_mask(part, _mm512_set1_epi32(32));
    const __m512i change = _mm512_mask_blend_epi32(is_upper, lower, upper);
    const __mmask16 is_next = _mm512_cmpge_epi32_mask(cell, _mm512_srli_epi32(change, 8));
    const __m512i level = _mm512_mask_add_epi32(change, is_next, change, _mm512_set1_epi32(1));
    return _mm512_permutex2var_ps(levels[0], level, levels[1]);
  }
};

/// With kScales scales: those that are looked up side by side do not wait for each other.
template <size_t kScales, class Level>
HXQ_ALWAYS_INLINE void estimate_scales(const Level& level_of, const float* weights, size_t count, const float* inverses,
                                       float* sums) {
  Floats sum[kScales] = {};
  for_vectors(
      weights, count, [&](size_t, Floats w, size_t n) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (size_t s = 0; s < kScales; ++s) {
          const Floats x = w * inverses[s], distance = x - level_of(x);
          sum[s] += first_lanes(distance * distance, n);
        }
      });
#pragma GCC unroll 4
  for (size_t s = 0; s < kScales; ++s) {
    const Floats v = sum[s];
    const FourFloats lanes = (part_of<0>(v) + part_of<2>(v)) + (part_of<1>(v) + part_of<3>(v));
    sums[s] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }
}

/// With 16 scales, a lane for each: what `estimate_scales` has in lanes is summed up one after the other.
template <class Level>
HXQ_ALWAYS_INLINE void estimate_16_scales(const Level& level_of, const float* weights, size_t count,
                                          const float* inverses, float* sums) {
  const Floats inverse = load(inverses);
  const auto sum_of_four = [&](size_t lane) __attribute__((always_inline)) {
    Floats sum[4] = {};
    const auto add = [&](size_t i, size_t part) __attribute__((always_inline)) {
      const Floats x = weights[i] * inverse, distance = x - level_of(x);
      sum[part] += distance * distance;
    };
    size_t i = lane;
    for (; i + 12 < count; i += kLanes) {
#pragma GCC unroll 4
      for (size_t part = 0; part < 4; ++part) add(i + 4 * part, part);
    }
    for (size_t part = 0; part < 3; ++part) {
      if (i + 4 * part < count) add(i + 4 * part, part);
    }
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  };
  const Floats even = sum_of_four(0) + sum_of_four(2), odd = sum_of_four(1) + sum_of_four(3);
  const Floats all = even + odd;
  __builtin_memcpy(sums, &all, sizeof all);
}

template <class Level>
void estimate_with(const Level& level_of, const float* weights, size_t count, const float* inverses, size_t scales,
                   float* sums) {
  size_t s = 0;
  for (; s + kLanes <= scales; s += kLanes) estimate_16_scales(level_of, weights, count, inverses + s, sums + s);
  for (; s + 4 <= scales; s += 4) estimate_scales<4>(level_of, weights, count, inverses + s, sums + s);
  for (; s + 2 <= scales; s += 2) estimate_scales<2>(level_of, weights, count, inverses + s, sums + s);
  if (s < scales) estimate_scales<1>(level_of, weights, count, inverses + s, sums + s);
}

void estimate(const LevelCells& cells, const float* weights, size_t count, const float* inverses, size_t scales,
              float* sums) {
  if (cells.is_whole) return estimate_with(WholeLevels{cells}, weights, count, inverses, scales, sums);
  if (cells.few) return estimate_with(RegisterLevels(cells), weights, count, inverses, scales, sums);
  estimate_with(AnyLevels{cells}, weights, count, inverses, scales, sums);
}

double error(const LevelCells& cells, const float* weights, size_t count, float unit, float inverse) {
  FourDoubles sum = {};
  for_vectors(
      weights, count, [&](size_t, Floats w, size_t n) __attribute__((always_inline)) {
        const Floats distance = first_lanes(w - unit * look_up(cells.levels, nearest(cells, w * inverse)), n);
        const auto add_part = [&](FourFloats part) __attribute__((always_inline)) {
          const FourDoubles exact = __builtin_convertvector(part, FourDoubles);
          sum += exact * exact;
        };
        add_part(part_of<0>(distance));
        add_part(part_of<1>(distance));
        add_part(part_of<2>(distance));
        add_part(part_of<3>(distance));
      });
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void quantize(const LevelCells& cells, const float* weights, size_t count, float inverse, float unit, uint8_t* index,
              float* decoded) {
  for_vectors(
      weights, count, [&](size_t i, Floats w, size_t n) __attribute__((always_inline)) {
        const Ints found = nearest(cells, w * inverse);
        const Bytes bytes = __builtin_convertvector(found, Bytes);
        const Floats values = unit * look_up(cells.levels, found);
        __builtin_memcpy(index + i, &bytes, n);
        __builtin_memcpy(decoded + i, &values, n * sizeof *decoded);
      });
}

Extremes extremes(const float* weights, size_t count) {
  __m512 least = _mm512_set1_ps(weights[0]), largest = least;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m512 w = _mm512_loadu_ps(weights + i);
    least = _mm512_min_ps(least, w);
    largest = _mm512_max_ps(largest, w);
  }
  Extremes found = {_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(largest)};
  for (; i < count; ++i) {
    if (weights[i] < found.least) found.least = weights[i];
    if (weights[i] > found.largest) found.largest = weights[i];
  }
  return found;
}

/// Two vectors of 8 lanes, added as `ScaleSteps` says.
HXQ_ALWAYS_INLINE double sum_of_lanes(const EightDoubles (&sums)[2]) {
  const EightDoubles v = sums[0] + sums[1];
  const FourDoubles lanes = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

Differences compare(const float* weights, size_t count, float factor, const float* decoded) {
  EightDoubles signal[2] = {}, of_decoded[2] = {}, error[2] = {};
  __m512 largest = _mm512_setzero_ps();
  for_vectors(
      weights, count, [&](size_t i, Floats of_group, size_t n) __attribute__((always_inline)) {
        const Floats w = of_group * factor, d = n == kLanes ? load(decoded + i) : load(decoded + i, n);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(w - d));
        const auto add = [&](EightFloats of_w, EightFloats of_d, int half) __attribute__((always_inline)) {
          const EightDoubles x = __builtin_convertvector(of_w, EightDoubles);
          const EightDoubles y = __builtin_convertvector(of_d, EightDoubles);
          signal[half] += x * x;
          of_decoded[half] += y * y;
          error[half] += (x - y) * (x - y);
        };
        add(half_of<0>(w), half_of<0>(d), 0);
        add(half_of<1>(w), half_of<1>(d), 1);
      });
  return {sum_of_lanes(signal), sum_of_lanes(of_decoded), sum_of_lanes(error), _mm512_reduce_max_ps(largest)};
}

}  // namespace

constinit const ScaleSteps kAvx512ScaleSteps = {
    .extremes = extremes, .estimate = estimate, .error = error, .quantize = quantize, .compare = compare};

}  // namespace hxq
