#include "codec/codebook/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "codec/check_source.h"
#include "codec/codebook/assign.h"
#include "codec/codebook/codec.h"
#include "codec/codebook/fit.h"
#include "codec/codebook/value_histogram.h"
#include "codec/low_rank_terms.h"
#include "hxq/error.h"
#include "io/threads.h"

namespace hxq {
namespace {

constexpr int32_t kMaxCodewords = 256;

constexpr Profile kProfiles[] = {{"hxq", 8}, {"hxq-segments", 8, 0, Levels::segments}};

void check(const TensorView& source, const CodebookOptions& options) {
  check_source(source);
  if (!(options.sidecar_fraction >= 0 && options.sidecar_fraction <= 1)) {
    throw Error(fmt::format("sidecar fraction is {}, expected 0 to 1", options.sidecar_fraction));
  }
  if (options.max_codewords < 1 || options.max_codewords > kMaxCodewords) {
    throw Error(fmt::format("{} codewords, expected 1 to 256", options.max_codewords));
  }
  check_low_rank(options.low_rank);
  if (options.in_segments && options.max_codewords != kMaxCodewords) {
    throw Error(fmt::format("{} codewords in segments, expected {}", options.max_codewords, kMaxCodewords));
  }
  if (options.threads < 0) throw Error(fmt::format("{} threads, expected 0 or more", options.threads));
}

template <class T>
EncodedPart part_of(const char* suffix, DType dtype, const Shape& shape, const std::vector<T>& values) {
  EncodedPart part{suffix, dtype, shape, std::vector<std::byte>(values.size() * sizeof(T))};
  std::memcpy(part.bytes.data(), values.data(), part.bytes.size());
  return part;
}

constexpr int64_t kOutlierBytes = 12;  // position and value

/// The largest number of outliers.
int64_t outlier_budget(const Shape& shape, double sidecar_fraction) noexcept {
  const int64_t count = element_count(shape);
  return std::min(static_cast<int64_t>(std::floor(sidecar_fraction * static_cast<double>(count))), count);
}

/// The same beside a term of that rank, where it is not told; negative: there is no room for the term.
int64_t outliers_beside(int64_t rank, const Shape& shape, double sidecar_fraction) noexcept {
  const int64_t budget = outlier_budget(shape, sidecar_fraction);
  const auto more = static_cast<int64_t>(kTermBits / 8 * static_cast<double>(element_count(shape)));
  const int64_t left = kOutlierBytes * budget + more - low_rank_bytes(rank, shape);
  return left < 0 ? -1 : std::min(budget, left / kOutlierBytes);
}

int64_t expected_bytes(const Shape& shape, const EncodeOptions& options) noexcept {
  // As many outliers as there are by default weigh too little to decide.
  const int64_t few = outlier_budget(shape, std::min(options.sidecar_fraction, EncodeOptions().sidecar_fraction));
  const int64_t more = kOutlierBytes * (outlier_budget(shape, options.sidecar_fraction) - few);
  return shape[0] * shape[1] + kMaxCodewords * static_cast<int64_t>(sizeof(float)) + more +
         told_term_bytes(options.low_rank, shape);
}

std::vector<PartPlan> largest_parts(const Shape& shape, const EncodeOptions& options) {
  const int64_t weights = element_count(shape);
  std::vector<PartPlan> parts = {{"codebook", DType::f32, {kMaxCodewords}},
                                 {"indices", DType::u8, shape},
                                 {"sidecar_positions", DType::i64, {weights}},
                                 {"sidecar_values", DType::f32, {weights}}};
  const bool has_room = outliers_beside(1, shape, options.sidecar_fraction) >= 0;
  const int64_t rank = options.low_rank ? *options.low_rank : has_room ? kMaxChosenRank : 0;
  std::ranges::copy(planned_parts(rank, shape), std::back_inserter(parts));
  return parts;
}

EncodedTensor encode(const TensorView& source, const EncodeOptions& options) {
  return encode_codebook(source, {.sidecar_fraction = options.sidecar_fraction,
                                  .max_codewords = kMaxCodewords,
                                  .threads = options.threads,
                                  .low_rank = options.low_rank,
                                  .in_segments = options.levels == Levels::segments});
}

nlohmann::json config(const EncodeOptions&) {
  return {{"bits", 8},
          {"n_clusters", kMaxCodewords},
          {"codebook_size", kMaxCodewords},
          {"vector_dim", 1},
          {"sidecar_enabled", true}};
}

/// Weights, less their term if they have one, with the codebook and outliers for them.
struct Solution {
  Weights weights;
  ValueHistogram histogram = {};
  CodebookFit fit = {};

  int64_t outliers() const { return std::accumulate(fit.outliers.begin(), fit.outliers.end(), int64_t{0}); }
  double bits_per_weight() const {
    const int64_t bytes = low_rank_bytes(weights.term().rank, weights.source().shape) + kOutlierBytes * outliers();
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights.size());
  }
  /// Less is better: error that bits would buy at 6 dB each is left out.
  double cost() const { return fit.error * std::exp2(2 * bits_per_weight()); }
};

/// Finds the solution for a matrix.
class Chooser {
 public:
  Chooser(const TensorView& source, const CodebookOptions& options, int threads)
      : source_(source),
        options_(options),
        threads_(threads),
        budget_(outlier_budget(source.shape, options.sidecar_fraction)) {}

  Solution run() const {
    if (!options_.low_rank) return with_what_pays(solve(Weights(source_), budget_));
    const auto wanted = std::min<int64_t>({*options_.low_rank, source_.shape[0], source_.shape[1]});
    return solve(less_leading_pairs(source_, wanted, threads_), budget_);
  }

 private:
  Solution solve(Weights weights, int64_t outliers) const {
    ValueHistogram histogram = count_values(weights, threads_);
    CodebookFit fit = fit_codebook(histogram, options_.max_codewords, outliers, options_.in_segments);
    return {std::move(weights), std::move(histogram), std::move(fit)};
  }

  /// Adds to the term as long as that pays.
  Solution with_what_pays(Solution best) const {
    while (best.fit.error > 0 && best.weights.term().rank < kMaxChosenRank) {
      const int64_t rank = best.weights.term().rank;
      const int64_t outliers = outliers_beside(rank + 1, source_.shape, options_.sidecar_fraction);
      const double least_gain = rank == 0 ? 1.05 : 1.1;  // 0.2 and 0.4 dB: less is not worth passes over the weights
      if (outliers < 0) break;
      const auto count = static_cast<double>(source_.size());
      const auto proposal = propose_term(
          best.weights, {.outliers_now = static_cast<double>(best.outliers()) / count,
                         .outliers_then = static_cast<double>(outliers) / count,
                         .least_gain = least_gain * std::exp2(2 * std::min(term_bits(source_.shape), kTermBits))});
      if (!proposal) break;
      const auto term = rank_one_term(best.weights, *proposal, threads_);
      if (!term) break;
      Solution better = solve(best.weights.less(*term), outliers);
      if (!(better.cost() * least_gain < best.cost())) break;
      best = std::move(better);
    }
    return best;
  }

  const TensorView& source_;
  const CodebookOptions& options_;
  int threads_;
  int64_t budget_;
};

}  // namespace

EncodedTensor encode_codebook(const TensorView& source, const CodebookOptions& options) {
  check(source, options);
  const int64_t count = source.size();
  // A thread is worth its tables from a quarter of a million elements on.
  const int64_t useful = std::max<int64_t>(1, count >> 18);
  const int threads =
      static_cast<int>(std::min<int64_t>(options.threads > 0 ? options.threads : available_threads(), useful));
  const auto [weights, histogram, fit] = Chooser(source, options, threads).run();

  EncodedTensor encoded;
  std::vector<EncodedPart>& parts = encoded.parts;
  parts.push_back(part_of("codebook", DType::f32, {static_cast<int64_t>(fit.levels.size())}, fit.levels));
  parts.push_back({"indices", DType::u8, source.shape, std::vector<std::byte>(static_cast<size_t>(count))});
  const Assignment assignment = assign(weights, histogram, fit, threads, parts.back().bytes);
  encoded.fidelity = assignment.fidelity;
  encoded.outliers = static_cast<int64_t>(assignment.outliers.size());
  if (encoded.outliers > 0) {
    std::vector<float> values;
    values.reserve(assignment.outliers.size());
    for (int64_t position : assignment.outliers) values.push_back(weights.at(position));
    parts.push_back(part_of("sidecar_positions", DType::i64, {encoded.outliers}, assignment.outliers));
    parts.push_back(part_of("sidecar_values", DType::f32, {encoded.outliers}, values));
  }
  std::ranges::move(parts_of(weights.term(), source.shape), std::back_inserter(parts));
  return encoded;
}

constinit const Encoder kCodebookEncoder = {.codec = &kCodebookCodec,
                                            .keeps_outliers = true,
                                            .has_low_rank = true,
                                            .profiles = kProfiles,
                                            .expected_bytes = expected_bytes,
                                            .largest_parts = largest_parts,
                                            .encode = encode,
                                            .config = config};

}  // namespace hxq
