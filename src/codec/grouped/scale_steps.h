#pragma once

#include <cstddef>
#include <cstdint>

namespace hxq {

/// `LevelCells::middle` of 4096 cells and up to 32 levels in tables that fit registers. Every 64 cells have two levels
/// at most, of which one is the next after the other.
struct FewLevels {
  int32_t changes[64];  ///< in 256ths: the cell from which it is the next level; added, the number of the level before
  float levels[32];
};

/// What `ScaleSearch` looks levels up in. The cell of x is x * cells_per_unit + origin, rounded down.
struct LevelCells {
  const float* levels;   // [k] ascending
  const float* ends;     // [k] what is larger belongs to a later level; the last one is infinite
  const uint8_t* first;  // [cells + 3] no earlier level is the nearest of a number in the cell; bytes after it are read
  const float* middle;   // [cells] the level that is nearest to the cell's middle
  float cells_per_unit, origin;
  float low, high;       ///< what the cells cover
  bool has_single_ends;  ///< no cell has numbers of more than two levels
  bool is_whole;         ///< levels are all whole numbers from `least` to `largest`
  float least, largest;
  const FewLevels* few;  ///< null: there are too many, or they are too close
};

/// The extremes of some weights.
struct Extremes {
  float least = 0;
  float largest = 0;
};

/// Sums over weights and what they decode to.
struct Differences {
  double signal = 0;   ///< of squares of the weights
  double decoded = 0;  ///< of squares of what they decode to
  double error = 0;    ///< of squares of the differences
  float largest = 0;   ///< difference
};

/// The loops of the encoder over the weights of a group or a row, compiled for several instruction sets: sums are of 16
/// lanes that weights go to in turn (4 in `error`), so that all give the same bits.
struct ScaleSteps {
  /// `count`: at least 1.
  Extremes (*extremes)(const float* weights, size_t count);
  /// sums[s] = sum of (w * inverses[s] - level)^2, with the level of the cell's middle, or the nearest if `is_whole`,
  /// for `scales` inverses.
  void (*estimate)(const LevelCells& cells, const float* weights, size_t count, const float* inverses, size_t scales,
                   float* sums);
  /// Sum of (w - unit * nearest level)^2; inverse is 1 / unit.
  double (*error)(const LevelCells& cells, const float* weights, size_t count, float unit, float inverse);
  /// The index of the level that is nearest to w * inverse, and unit * level.
  void (*quantize)(const LevelCells& cells, const float* weights, size_t count, float inverse, float unit,
                   uint8_t* index, float* decoded);
  /// Of the weights times `factor`.
  Differences (*compare)(const float* weights, size_t count, float factor, const float* decoded);
};

/// Those of the best instruction set that the processor has.
const ScaleSteps& scale_steps() noexcept;

extern const ScaleSteps kScalarScaleSteps;
extern const ScaleSteps kAvx512ScaleSteps;  ///< on x86-64 alone

}  // namespace hxq
