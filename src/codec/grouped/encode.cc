#include "codec/grouped/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "codec/check_source.h"
#include "codec/grouped/fit.h"
#include "codec/grouped/matrix.h"
#include "codec/low_rank_terms.h"
#include "hxq/error.h"
#include "io/threads.h"

namespace hxq {
namespace {

constexpr Profile kProfiles[] = {{"g8", 8, 64},
                                 {"g7", 7, 64},
                                 {"g6", 6, 32},
                                 {"g5", 5, 32},
                                 {"g4", 4, 32},
                                 {"g3", 3, 32},
                                 {"g8-uniform", 8, 32, Levels::uniform}};

constexpr int64_t kChunk = int64_t{1} << 14;  // weights that a thread takes at a time, in whole rows
/// Weights in the sample that levels are fitted to. With a thousand for each level, what the sample's levels lose
/// against the whole matrix's is a thousandth of the error, 0.004 dB.
constexpr int64_t sample_weights(int bits) { return std::max<int64_t>(int64_t{1} << 16, int64_t{1024} << bits); }
/// Scales tried for a group: all of them in small matrices, at least `kLeastTrials` in large ones.
constexpr int64_t kTrialWork = int64_t{1} << 27;
constexpr int64_t kLeastTrials = 16;
constexpr double kMaxTermBits = 0.25;  // per weight, of one pair: small matrices are not tried

/// How a matrix is cut into groups.
struct Cut {
  int64_t rows = 0, cols = 0, group = 0;
  int bits = 0;

  int64_t groups() const { return GroupedMatrix::groups_of(cols, group); }
  int64_t row_bytes() const { return GroupedMatrix::packed_bytes(cols, bits); }
  int64_t chunk_rows() const { return std::max<int64_t>(1, kChunk / cols); }
  int chunks() const { return static_cast<int>((rows + chunk_rows() - 1) / chunk_rows()); }
  /// Columns of a row's group.
  std::span<const float> columns(std::span<const float> row, int64_t i) const {
    const auto begin = static_cast<size_t>(i * group);
    return row.subspan(begin, std::min(static_cast<size_t>(group), row.size() - begin));
  }
};

Cut cut_of(const Shape& shape, const EncodeOptions& options) noexcept {
  return {shape[0], shape[1], options.group, options.bits};
}

/// The largest magnitude of a group; infinite where a weight is not finite.
float magnitude_of(std::span<const float> weights) {
  int32_t largest = 0;
  for (const float w : weights) largest = std::max(largest, std::bit_cast<int32_t>(w) & 0x7fffffff);
  return std::bit_cast<float>(std::min(largest, 0x7f800000));
}

/// Calls `work(row, span of its weights times factor)` for every row, chunks of rows on several threads.
template <class Work>
void for_rows(const Weights& weights, const Cut& cut, float factor, int threads, Work work) {
  parallel_for(threads, cut.chunks(), [&](int chunk) {
    const int64_t begin = chunk * cut.chunk_rows(), end = std::min(cut.rows, begin + cut.chunk_rows());
    const auto width = static_cast<size_t>(cut.cols), size = static_cast<size_t>(end - begin) * width;
    const auto buffer = std::make_unique_for_overwrite<float[]>(size);
    const std::span rows(buffer.get(), size);
    weights.read(begin * cut.cols, rows);
    if (factor != 1) {
      for (float& w : rows) w *= factor;
    }
    for (int64_t r = begin; r < end; ++r) work(r, rows.subspan(static_cast<size_t>(r - begin) * width, width));
  });
}

/// [rows, groups]. Throws for weights that are not finite.
std::vector<float> find_peaks(const Weights& weights, const Cut& cut, int threads) {
  std::vector<float> peaks(static_cast<size_t>(cut.rows * cut.groups()));
  for_rows(weights, cut, 1, threads, [&](int64_t r, std::span<const float> row) {
    for (int64_t i = 0; i < cut.groups(); ++i)
      peaks[static_cast<size_t>(r * cut.groups() + i)] = magnitude_of(cut.columns(row, i));
  });
  if (!std::isfinite(*std::ranges::max_element(peaks))) throw_not_finite(weights.source());
  return peaks;
}

/// Groups spread over the matrix at distances that no period of rows or columns meets; all of a small one. Groups of
/// zeros are left out.
GroupSample take_sample(const Weights& weights, const Cut& cut, std::span<const float> peaks, float factor) {
  std::vector<size_t> others;
  for (size_t i = 0; i < peaks.size(); ++i) {
    if (peaks[i] > 0) others.push_back(i);
  }
  const auto wanted =
      static_cast<size_t>(std::max<int64_t>(1, sample_weights(cut.bits) / std::min(cut.group, cut.cols)));
  const size_t count = std::min(wanted, others.size());
  constexpr double kGolden = 0.6180339887498949;
  GroupSample sample;
  for (size_t n = 0; n < count; ++n) {
    const double stratum = static_cast<double>(others.size()) / static_cast<double>(count);
    const double turn = static_cast<double>(n) * kGolden;
    const double place =
        count == others.size() ? static_cast<double>(n) : (static_cast<double>(n) + turn - std::floor(turn)) * stratum;
    const size_t at = others[std::min(static_cast<size_t>(place), others.size() - 1)];
    const auto groups = static_cast<size_t>(cut.groups());
    const int64_t r = static_cast<int64_t>(at / groups), i = static_cast<int64_t>(at % groups);
    const int64_t begin = i * cut.group, columns = std::min(cut.group, cut.cols - begin);
    std::vector<float> group(static_cast<size_t>(columns));
    weights.read(r * cut.cols + begin, group);
    for (const float w : group) sample.weights.push_back(w * factor);
    sample.ends.push_back(sample.weights.size());
  }
  return sample;
}

/// Weights times `factor` against what they decode to.
Fidelity compare_row(std::span<const float> weights, float factor, std::span<const float> decoded) {
  const Differences sums = scale_steps().compare(weights.data(), weights.size(), factor, decoded.data());
  Fidelity row{.count = static_cast<int64_t>(weights.size()),
               .signal = sums.signal,
               .decoded = sums.decoded,
               .squared_error = sums.error,
               .max_error = sums.largest};
  row.dot = (row.signal + row.decoded - row.squared_error) / 2;
  return row;
}

/// A row of the source against what it decodes to: `decoded`, of the weights less their term, which are row * factor.
Fidelity fidelity_of(const Weights& weights, int64_t r, std::span<const float> row, float factor,
                     std::vector<float>& decoded) {
  if (weights.term().rank == 0) return compare_row(row, factor, decoded);
  std::vector<float> source(row.size());
  weights.read_source(r * weights.cols(), source);
  weights.add_term(r * weights.cols(), decoded);
  return compare_row(source, 1, decoded);
}

/// Indices of `bits` each, lowest bits first; eight of them fill whole bytes.
void pack(std::span<const uint8_t> index, int bits, std::span<std::byte> out) {
  std::byte* to = out.data();
  for (size_t begin = 0; begin < index.size(); begin += 8) {
    const size_t count = std::min<size_t>(8, index.size() - begin);
    uint64_t word = 0;
    for (size_t i = 0; i < count; ++i) word |= uint64_t{index[begin + i]} << (8 * i);
    // Neighbours move together: pairs, then fours, then all.
    const auto join = [&word](uint64_t lower, int gap) { word = (word & lower) | ((word & ~lower) >> gap); };
    join(0x00ff00ff00ff00ff, 8 - bits);
    join(0x0000ffff0000ffff, 16 - 2 * bits);
    join(0x00000000ffffffff, 32 - 4 * bits);
    const size_t bytes = (count * static_cast<size_t>(bits) + 7) / 8;
    std::memcpy(to, &word, bytes);
    to += bytes;
  }
}

template <class T>
EncodedPart part_of(const char* suffix, DType dtype, const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {suffix, dtype, {static_cast<int64_t>(values.size())}, {bytes.begin(), bytes.end()}};
}

/// Scale levels as they are stored: 0 for groups of zeros, those of the fit in the source's unit, and their negatives
/// if it has any.
std::vector<float> stored_scales(const GroupedFit& fit, float factor) {
  const float largest = std::max(std::fabs(fit.levels.front()), std::fabs(fit.levels.back()));
  const float limit = std::numeric_limits<float>::max() / largest * 0.999f;  // so that products are finite
  std::vector<float> stored = {0};
  for (const float scale : fit.scales()) stored.push_back(std::min(scale / factor, limit));
  const size_t count = stored.size();
  for (size_t i = 1; i < count && fit.has_signs; ++i) stored.push_back(-stored[i]);
  return stored;
}

/// Leaves out the scale levels that no group has, and numbers the others anew.
void drop_unused(std::vector<float>& scale_levels, std::span<std::byte> scales) {
  std::array<bool, 256> is_used = {};
  for (const std::byte scale : scales) is_used[static_cast<size_t>(scale)] = true;
  std::array<std::byte, 256> number = {};
  size_t count = 0;
  for (size_t i = 0; i < scale_levels.size(); ++i) {
    if (!is_used[i]) continue;
    number[i] = static_cast<std::byte>(count);
    scale_levels[count++] = scale_levels[i];
  }
  scale_levels.resize(count);
  for (std::byte& scale : scales) scale = number[static_cast<size_t>(scale)];
}

/// Weights, less their term if they have one, and what their groups are stored with.
struct Solution {
  Weights weights;
  std::vector<float> peaks = {};  ///< [rows, groups]
  float factor = 1;  ///< a power of two that puts the largest weight from 1 to 2: no square is out of range
  GroupedFit fit = {};
  double error = 0;  ///< of all weights, if they are as the sample
};

/// Finds the solution for a matrix.
class Chooser {
 public:
  Chooser(const TensorView& source, const EncodeOptions& options, int threads)
      : source_(source), options_(options), cut_(cut_of(source.shape, options)), threads_(threads) {}

  Solution run() const {
    if (!options_.low_rank) return with_what_pays(solve(source_));
    find_peaks(source_, cut_, threads_);  // all weights are finite
    const auto wanted = std::min<int64_t>({*options_.low_rank, source_.shape[0], source_.shape[1]});
    return solve(less_leading_pairs(source_, wanted, threads_));
  }

 private:
  Solution solve(Weights weights) const {
    Solution solution{.weights = std::move(weights)};
    solution.peaks = find_peaks(solution.weights, cut_, threads_);
    const std::vector<float>& peaks = solution.peaks;
    const float largest = *std::ranges::max_element(peaks);
    if (largest > 0) solution.factor = std::ldexp(1.0f, std::min(-std::ilogb(largest), 126));
    const GroupSample sample = take_sample(solution.weights, cut_, peaks, solution.factor);
    const LevelForm form{options_.bits, options_.levels == Levels::uniform};
    if (sample.size() == 0) {
      solution.fit.levels = form.is_uniform ? uniform_levels() : std::vector<float>(size_t{1} << form.bits);
      return solution;
    }
    float least = std::numeric_limits<float>::infinity();
    for (const float peak : peaks) {
      if (peak > 0) least = std::min(least, peak);
    }
    solution.fit = fit_groups(sample, least * solution.factor, largest * solution.factor, form, threads_);
    const auto groups = static_cast<double>(peaks.size() - static_cast<size_t>(std::ranges::count(peaks, 0.0f)));
    solution.error =
        solution.fit.error / solution.factor / solution.factor * groups / static_cast<double>(sample.size());
    solution.fit.set_trials(static_cast<int>(std::clamp<int64_t>(kTrialWork / source_.size(), kLeastTrials, 512)));
    return solution;
  }

  /// Adds to the term as long as that pays: it must take more error away than smaller groups would for as many bits.
  Solution with_what_pays(Solution best) const {
    constexpr double kDbPerBit = 8;  // halving groups of 64 takes 1 dB for an eighth of a bit; of 32, 1.4 for a quarter
    constexpr double kLeastGain = 1.05;  // 0.2 dB beyond that: less is not worth passes over the weights
    const double bits = term_bits(source_.shape);
    if (bits > kMaxTermBits) return best;
    const double gain = kLeastGain * std::pow(10, kDbPerBit / 10 * bits);
    while (best.error > 0 && best.weights.term().rank < kMaxChosenRank) {
      const auto proposal = propose_term(best.weights, {.least_gain = gain, .group = cut_.group});
      if (!proposal) break;
      const auto term = rank_one_term(best.weights, *proposal, threads_);
      if (!term) break;
      Solution better = solve(best.weights.less(*term));
      if (!(better.error * gain < best.error)) break;
      best = std::move(better);
    }
    return best;
  }

  const TensorView& source_;
  const EncodeOptions& options_;
  Cut cut_;
  int threads_;
};

void check(const TensorView& source, const EncodeOptions& options) {
  check_source(source);
  if (options.bits < 3 || options.bits > 8) throw Error(fmt::format("{} bits, expected 3 to 8", options.bits));
  if (options.group < 8 || options.group % 8 != 0) {
    throw Error(fmt::format("groups of {}, expected a multiple of 8", options.group));
  }
  if (options.levels == Levels::uniform && options.bits != 8) {
    throw Error(fmt::format("uniform levels of {} bits, expected 8", options.bits));
  }
  check_low_rank(options.low_rank);
}

EncodedTensor encode(const TensorView& source, const EncodeOptions& options) {
  check(source, options);
  const Cut cut = cut_of(source.shape, options);
  const int threads = options.threads > 0 ? options.threads : available_threads();
  const Solution solution = Chooser(source, options, threads).run();
  const Weights& weights = solution.weights;
  const float factor = solution.factor;
  const GroupedFit& fit = solution.fit;

  EncodedPart packed{"grouped_indices", DType::u8, {cut.rows, cut.row_bytes()}, {}};
  packed.bytes.resize(static_cast<size_t>(cut.rows * cut.row_bytes()));
  EncodedPart scales{"grouped_scales", DType::u8, {cut.rows, cut.groups()}, {}};
  scales.bytes.resize(static_cast<size_t>(cut.rows * cut.groups()));
  std::vector<float> scale_levels = stored_scales(fit, factor);
  std::vector<Fidelity> of_rows(static_cast<size_t>(cut.rows));
  const ScaleSearch search(fit.levels, fit.scales());
  for_rows(weights, cut, factor, threads, [&](int64_t r, std::span<const float> row) {
    std::vector<uint8_t> index(row.size());
    std::vector<float> decoded(row.size());
    for (int64_t i = 0; i < cut.groups(); ++i) {
      const auto at = static_cast<size_t>(r * cut.groups() + i), begin = static_cast<size_t>(i * cut.group);
      if (solution.peaks[at] == 0) continue;
      const std::span<const float> group = cut.columns(row, i);
      const auto [scale, is_negative, error] = find_scale(fit, search, group, false);
      const size_t number = 1 + static_cast<size_t>(scale) + (is_negative ? fit.grid.size() : 0);
      scales.bytes[at] = static_cast<std::byte>(number);
      search.quantize(group, scale, is_negative, scale_levels[number], std::span(index).subspan(begin, group.size()),
                      std::span(decoded).subspan(begin, group.size()));
    }
    of_rows[static_cast<size_t>(r)] = fidelity_of(weights, r, row, 1 / factor, decoded);
    pack(index, cut.bits,
         std::span(packed.bytes)
             .subspan(static_cast<size_t>(r * cut.row_bytes()), static_cast<size_t>(cut.row_bytes())));
  });
  drop_unused(scale_levels, scales.bytes);

  std::vector<int64_t> shape = {cut.cols, cut.group};
  if (weights.term().rank > 0) shape.push_back(weights.term().rank);
  EncodedTensor encoded;
  for (const Fidelity& row : of_rows) encoded.fidelity += row;
  encoded.parts.push_back(std::move(packed));
  encoded.parts.push_back(part_of("grouped_levels", DType::f32, fit.levels));
  encoded.parts.push_back(std::move(scales));
  encoded.parts.push_back(part_of("grouped_scale_levels", DType::f32, scale_levels));
  encoded.parts.push_back(part_of("grouped_shape", DType::i64, shape));
  std::ranges::move(parts_of(weights.term(), source.shape), std::back_inserter(encoded.parts));
  return encoded;
}

int64_t expected_bytes(const Shape& shape, const EncodeOptions& options) noexcept {
  const Cut cut = cut_of(shape, options);
  const int64_t tables = static_cast<int64_t>(sizeof(float)) * ((int64_t{1} << cut.bits) + 256) + 2 * 8;
  return cut.rows * (cut.row_bytes() + cut.groups()) + tables + told_term_bytes(options.low_rank, shape);
}

std::vector<PartPlan> largest_parts(const Shape& shape, const EncodeOptions& options) {
  const Cut cut = cut_of(shape, options);
  std::vector<PartPlan> parts = {{"grouped_indices", DType::u8, {cut.rows, cut.row_bytes()}},
                                 {"grouped_levels", DType::f32, {int64_t{1} << cut.bits}},
                                 {"grouped_scales", DType::u8, {cut.rows, cut.groups()}},
                                 {"grouped_scale_levels", DType::f32, {256}},
                                 {"grouped_shape", DType::i64, {3}}};
  const int64_t chosen = term_bits(shape) > kMaxTermBits ? 0 : kMaxChosenRank;
  std::ranges::copy(planned_parts(options.low_rank.value_or(chosen), shape), std::back_inserter(parts));
  return parts;
}

nlohmann::json config(const EncodeOptions& options) {
  nlohmann::json config = {{"bits", options.bits}, {"group", options.group}};
  if (options.levels != Levels::fitted) config["levels"] = name_of(options.levels);
  return config;
}

}  // namespace

constinit const Encoder kGroupedEncoder = {.codec = &kGroupedCodec,
                                           .quant_method = "hxq_grouped",
                                           .keeps_outliers = false,
                                           .has_low_rank = true,
                                           .profiles = kProfiles,
                                           .expected_bytes = expected_bytes,
                                           .largest_parts = largest_parts,
                                           .encode = encode,
                                           .config = config};

}  // namespace hxq
