#pragma once

#include <numeric>

#include "kernels/cpu/grouped_prepared.h"
#include "kernels/grouped_rounding.h"
#include "kernels/linear_test_data.h"

namespace hxq::kernels::testing {

struct GroupedOptions {
  int64_t rows = 1;
  int64_t cols = 1;
  int bits = 4;
  int64_t group = 32;
  bool whole_levels = true;  ///< as the encoder writes them; otherwise any floats
  float largest = 127;       ///< whole levels are clamped to this
  bool uniform = false;      ///< levels from -128 to 127, of 8 bits
  int64_t scales = 256;      ///< scale levels, on a logarithmic grid
  int64_t rank = 0;
  DType factors = DType::f16;  ///< the type of low-rank factors
  uint32_t seed = 1;
};

/// A grouped matrix of random indices in guarded memory, and its weights as they decode.
struct TestGrouped {
  GroupedMatrix view;
  std::unique_ptr<const cpu::PreparedGrouped> prepared;  // of the view
  std::vector<float> weights;                            // [rows, cols]
  std::unique_ptr<GuardedBytes> packed, scales;
  TestTerm factors;

  explicit TestGrouped(const GroupedOptions& options)
      : factors(options.rows, options.cols, options.rank, options.factors, options.seed + 2), options_(options) {
    std::mt19937 random(options.seed);
    view.rows = options.rows;
    view.cols = options.cols;
    view.group = options.group;
    view.levels = normal_floats(int64_t{1} << options.bits, options.seed + 1,
                                options.whole_levels ? 0.3f * options.largest : 0.3f);
    std::ranges::sort(view.levels);
    if (options.whole_levels) {
      std::ranges::transform(view.levels, view.levels.begin(),
                             [&](float v) { return std::clamp(nearbyintf(v), -options.largest, options.largest); });
      view.levels.back() = options.largest;
    }
    if (options.uniform) std::iota(view.levels.begin(), view.levels.end(), -128.0f);
    for (int64_t i = 0; i < options.scales; ++i) {
      const float step = static_cast<float>(i) / static_cast<float>(options.scales);
      view.scale_levels.push_back(1e-3f * std::exp2(5 * step));
    }
    view.scale_levels[0] *= -1;
    std::vector<std::byte> bytes(static_cast<size_t>(options.rows * view.row_bytes()));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    const auto unused = static_cast<int>(view.row_bytes() * 8 - options.cols * options.bits);
    for (int64_t r = 1; r <= options.rows; ++r) {
      bytes[static_cast<size_t>(r * view.row_bytes() - 1)] &= static_cast<std::byte>(0xff >> unused);
    }
    packed = std::make_unique<GuardedBytes>(bytes);
    view.packed = packed->bytes();
    bytes.resize(static_cast<size_t>(options.rows * view.groups()));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(static_cast<int64_t>(random() % 1000) % options.scales);
    scales = std::make_unique<GuardedBytes>(bytes);
    view.scales = scales->bytes();
    view.low_rank = factors.view;
    weights.resize(static_cast<size_t>(options.rows * options.cols));
    view.decode_rows(0, options.rows, weights);
    prepared = std::make_unique<cpu::PreparedGrouped>(std::make_unique<GroupedMatrix>(view));
    prepared->finish();
  }

  double weight(int64_t row, int64_t col) const { return weights[static_cast<size_t>(row * view.cols + col)]; }

  /// Whether integers stand for the weights where x is quantized.
  bool has_integers() const {
    return options_.whole_levels && options_.largest <= 32767 && view.group >= 16 &&
           std::has_single_bit(static_cast<uint64_t>(view.group));
  }

  /// Whether decode rows multiply integers.
  bool decodes_integers(Target target) const {
    if (target != Target::avx2) return target >= Target::avx512;
    return options_.uniform || view.bits() == 5 || view.bits() == 6 || (options_.largest <= 127 && view.bits() <= 4);
  }

  double weight_error(int64_t row, Target target, Way way) const {
    const bool exact = target == Target::avx2 || view.bits() <= 6;
    if (!rounding(target, way) || (way.phase == Phase::decode && exact)) return 0;
    return largest_weight_error(view, row);
  }

  /// As rounding_of of a codebook matrix.
  std::optional<ActivationQuantization> rounding(Target target, Way way) const {
    if (target == Target::scalar || !has_integers()) return {};
    if (way.phase == Phase::prefill && way.precision == Precision::fast) {
      const bool tiles = target == Target::amx && view.cols <= kTileQuantization.block;
      return tiles ? kTileQuantization : kPrefillQuantization;
    }
    if (way.phase == Phase::decode && decodes_integers(target)) return kDecodeQuantization;
    return {};
  }

 private:
  GroupedOptions options_;
};

}  // namespace hxq::kernels::testing
