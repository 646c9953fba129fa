#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "codec/grouped/scale_search.h"

namespace hxq {

/// Groups of weights, one after the other, in one unit.
struct GroupSample {
  std::vector<float> weights = {};
  std::vector<size_t> ends = {};  ///< [groups] where each group ends in `weights`

  size_t size() const noexcept { return ends.size(); }
  std::span<const float> group(size_t i) const noexcept {
    const size_t begin = i == 0 ? 0 : ends[i - 1];
    return std::span(weights).subspan(begin, ends[i] - begin);
  }
};

/// What a matrix's groups are stored with.
struct GroupedFit {
  std::vector<float> levels = {};  ///< [k] ascending whole numbers, of at most `largest_level`
  double unit = 1;                 ///< of the levels to 1
  std::vector<float> grid = {};    ///< [1 to 255] scales for levels divided by `unit`, ascending in equal ratios
  bool has_signs = false;          ///< whether scales may also be negative: then the grid has at most 127
  /// How far the best scales of some groups are from those nearest to their largest magnitudes, ascending, in numbers.
  std::vector<int> distances = {};
  bool tries_both = false;  ///< whether both signs are searched, or only that of a group's largest magnitude
  ScaleRange reach = {};    ///< the distances to search
  double error = 0;         ///< of the sample: the sum of squares

  /// Lets `trials` scales of a group be searched, of both signs together: those where the best are most likely to be.
  void set_trials(int trials);

  /// The scales for `levels` themselves.
  std::vector<float> scales() const;
};

/// A group's scale: the number of one of the grid, and its sign.
struct GroupScale {
  int scale = 0;
  bool is_negative = false;
  double error = 0;  ///< sum of squares, if it was asked for
};

/// The best scale of those that are to be searched for the group, which is not of zeros. Levels of unlike reach on
/// either side fit a group better when its scale has the sign of the weight that is largest in magnitude.
/// `search`: of the fit's levels and scales.
GroupScale find_scale(const GroupedFit& fit, const ScaleSearch& search, std::span<const float> weights,
                      bool wants_error) noexcept;

/// What levels there are to be.
struct LevelForm {
  int bits = 0;             ///< of an index, 3 to 8
  bool is_uniform = false;  ///< `uniform_levels` as they are; of 8 bits only
};

/// The 256 whole numbers from -128 to 127: products with their indices need no table.
std::vector<float> uniform_levels();

/// Levels and scales for the groups of a matrix with largest magnitudes from `least_peak` (that of groups of zeros not
/// counted) to `largest_peak`. Levels for the scales (the optimal clusters of the weights divided by them), and scales
/// for the levels (the best of the grid), in turn until the error falls no more. `sample`: at least one group, none of
/// zeros. The answer does not depend on `threads` (>= 1).
GroupedFit fit_groups(const GroupSample& sample, float least_peak, float largest_peak, LevelForm form, int threads);

/// Levels for given scales.
struct ScaledLevels {
  std::vector<double> level = {};   ///< ascending
  std::vector<double> weight = {};  ///< what an error of the level counts: the sum of its weights' squared scales
};

/// The levels, 2^bits at most, that minimise the squared error for given scales, one for each group, not 0. Weights are
/// taken together in runs that are short against the distance of levels. `price`: as for `Partitioner::solve_count`.
ScaledLevels levels_for(const GroupSample& sample, std::span<const float> scale_of, int bits, double& price);

/// The largest magnitude of whole levels: a signed byte for 16 levels and fewer, 12 bits for up to 64, 16 for more.
int largest_level(int bits) noexcept;

}  // namespace hxq
