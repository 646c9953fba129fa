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
using Bytes = uint8_t __attribute__((vector_size(16)));

/// The first `count` weights and zeros after them, or 16.
HXQ_ALWAYS_INLINE Floats load(const float* from, size_t count) {
  Floats v = {};
  __builtin_memcpy(&v, from, count < kLanes ? count * sizeof *from : sizeof v);
  return v;
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
  const auto add = [&](size_t i, size_t n) __attribute__((always_inline)) {
    const Floats w = load(weights + i, n);
#pragma GCC unroll 4
    for (size_t s = 0; s < kScales; ++s) {
      const Floats x = w * inverses[s], distance = x - level_of(x);
      sum[s] += first_lanes(distance * distance, n);
    }
  };
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, kLanes);
  if (i < count) add(i, count - i);
#pragma GCC unroll 4
  for (size_t s = 0; s < kScales; ++s) {
    const Floats v = sum[s];
    const FourFloats lanes = (part_of<0>(v) + part_of<2>(v)) + (part_of<1>(v) + part_of<3>(v));
    sums[s] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }
}

template <class Level>
void estimate_with(const Level& level_of, const float* weights, size_t count, const float* inverses, size_t scales,
                   float* sums) {
  size_t s = 0;
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
  const auto add = [&](size_t i, size_t n) __attribute__((always_inline)) {
    const Floats w = load(weights + i, n);
    const Floats distance = first_lanes(w - unit * look_up(cells.levels, nearest(cells, w * inverse)), n);
    const auto add_part = [&](FourFloats part) __attribute__((always_inline)) {
      const FourDoubles exact = __builtin_convertvector(part, FourDoubles);
      sum += exact * exact;
    };
    add_part(part_of<0>(distance));
    add_part(part_of<1>(distance));
    add_part(part_of<2>(distance));
    add_part(part_of<3>(distance));
  };
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(i, kLanes);
  if (i < count) add(i, count - i);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void quantize(const LevelCells& cells, const float* weights, size_t count, float inverse, uint8_t* index) {
  for (size_t i = 0; i < count; i += kLanes) {
    const Ints found = nearest(cells, load(weights + i, count - i) * inverse);
    const Bytes bytes = __builtin_convertvector(found, Bytes);
    __builtin_memcpy(index + i, &bytes, count - i < kLanes ? count - i : kLanes);
  }
}

}  // namespace

constinit const ScaleSteps kAvx512ScaleSteps = {.estimate = estimate, .error = error, .quantize = quantize};

}  // namespace hxq
