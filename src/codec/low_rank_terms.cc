#include "codec/low_rank_terms.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <ranges>
#include <span>
#include <utility>

#include "hxq/compress.h"
#include "hxq/error.h"
#include "io/half.h"
#include "io/threads.h"

namespace hxq {
namespace {

/// Sums over rows are taken of this many equal runs of rows, and then over these: an order that no thread changes.
constexpr int kRuns = 16;

/// Calls `work(run, row, weights of the row)` for every row; runs go on at the same time.
template <class Work>
void for_rows(const Weights& weights, int threads, Work work) {
  parallel_for(threads, kRuns, [&](int run) {
    std::vector<float> row(static_cast<size_t>(weights.cols()));
    const int64_t end = weights.rows() * (run + 1) / kRuns;
    for (int64_t r = weights.rows() * run / kRuns; r < end; ++r) {
      weights.read(r * weights.cols(), row);
      work(static_cast<size_t>(run), r, std::span<const float>(row));
    }
  });
}

/// The sum of term(i) for i < count, in lanes that a compiler can keep side by side without changing the order.
template <class Term>
double sum_in_lanes(size_t count, Term term) {
  constexpr size_t kLanes = 8;
  double lane[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t n = 0; n < kLanes; ++n) lane[n] += term(i + n);
  }
  for (; i < count; ++i) lane[0] += term(i);
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

template <class Of>
double sum_of(std::span<const float> values, Of of) {
  return sum_in_lanes(values.size(), [&](size_t i) { return of(static_cast<double>(values[i])); });
}

double dot(std::span<const float> a, const std::vector<double>& b) {
  return sum_in_lanes(a.size(), [&](size_t i) { return a[i] * b[i]; });
}

void add_scaled(std::span<const float> row, double factor, double* sum) {
  for (size_t c = 0; c < row.size(); ++c) sum[c] += factor * row[c];
}

double squared_length(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return sum;
}

void scale(std::vector<double>& v, double factor) {
  for (double& x : v) x *= factor;
}

/// A sum over rows of vectors [cols].
class ColumnSums {
 public:
  explicit ColumnSums(int64_t cols) : runs_(kRuns, std::vector<double>(static_cast<size_t>(cols))) {}
  double* of_run(size_t run) { return runs_[run].data(); }
  std::vector<double> total() && {
    for (size_t run = 1; run < kRuns; ++run) {
      for (size_t c = 0; c < runs_[0].size(); ++c) runs_[0][c] += runs_[run][c];
    }
    return std::move(runs_[0]);
  }

 private:
  std::vector<std::vector<double>> runs_;
};

/// What one pass tells.
struct Moments {
  double squares = 0;  ///< sum of all squared weights
  std::vector<double> column_means = {}, row_means = {};
  std::vector<double> start = {};  ///< the sum of half of all rows: not orthogonal to any pair that matters
};

/// Half of all rows, in no order that weights have (the finaliser of splitmix64).
bool chosen(int64_t row) {
  uint64_t x = (static_cast<uint64_t>(row) + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x >> 63;
}

Moments moments_of(const Weights& weights, int threads) {
  ColumnSums sums(weights.cols()), start(weights.cols());
  Moments moments;
  std::vector<double> squares(kRuns);
  moments.row_means.resize(static_cast<size_t>(weights.rows()));
  for_rows(weights, threads, [&](size_t run, int64_t r, std::span<const float> row) {
    add_scaled(row, 1, sums.of_run(run));
    if (chosen(r)) add_scaled(row, 1, start.of_run(run));
    moments.row_means[static_cast<size_t>(r)] =
        sum_of(row, [](double x) { return x; }) / static_cast<double>(row.size());
    squares[run] += sum_of(row, [](double x) { return x * x; });
  });
  for (const double square : squares) moments.squares += square;
  moments.column_means = std::move(sums).total();
  scale(moments.column_means, 1 / static_cast<double>(weights.rows()));
  moments.start = std::move(start).total();
  return moments;
}

/// The power of two that puts the largest magnitude into (1/2, 1]; 0 if products of it and binary16 numbers might be no
/// normal floats.
double unit_of(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  if (!(largest >= 0x1p-100 && largest <= 0x1p100)) return 0;
  int exponent = 0;
  return std::frexp(largest, &exponent) == 0.5 ? std::ldexp(1.0, exponent - 1) : std::ldexp(1.0, exponent);
}

/// The nearest numbers that are binary16 numbers times `unit`, as floats.
std::vector<float> round_to_half(const std::vector<double>& values, double unit) {
  std::vector<float> rounded;
  rounded.reserve(values.size());
  for (const double value : values) {
    const uint16_t half = f16_from_float(static_cast<float>(value / unit));
    rounded.push_back(static_cast<float>(unit) * float_from_f16(half));
  }
  return rounded;
}

std::optional<LowRank> term_of(const std::vector<double>& u, const std::vector<double>& vt) {
  const double u_unit = unit_of(u), vt_unit = unit_of(vt);
  const double unit = u_unit * vt_unit;
  if (!(unit >= 0x1p-99 && unit <= 0x1p100)) return std::nullopt;
  std::vector<double> scaled_u = u, scaled_vt = vt;
  scale(scaled_u, vt_unit);
  scale(scaled_vt, 1 / vt_unit);
  return LowRank{.rank = 1, .u_scaled = round_to_half(scaled_u, unit), .vt = round_to_half(scaled_vt, 1)};
}

/// Power iteration for the leading pair. A step takes a vector v to Wt W v.
class PowerIteration {
 public:
  PowerIteration(const Weights& weights, std::vector<double> start, int threads)
      : weights_(weights), v_(std::move(start)), threads_(threads) {}

  /// At most that many steps; fewer when another one would change little. Says whether there is a pair.
  bool run(int steps) {
    constexpr double kGain = 2e-3;  // of the squares that go with v; the codebook takes what is left
    for (int i = 0; i < steps; ++i) {
      const double length = std::sqrt(squared_length(v_));
      if (!(length > 0) || !std::isfinite(length)) return false;
      scale(v_, 1 / length);
      const double before = std::exchange(captured_, step());
      if (captured_ < before * (1 + kGain)) break;
    }
    return true;
  }

  /// How much of the squared weights went with the vector before the last step.
  double captured() const noexcept { return captured_; }

  std::vector<double> v() && { return std::move(v_); }

 private:
  /// Returns |W v|^2.
  double step() {
    ColumnSums sums(weights_.cols());
    std::vector<double> captured(kRuns);
    for_rows(weights_, threads_, [&](size_t run, int64_t, std::span<const float> row) {
      const double product = dot(row, v_);
      captured[run] += product * product;
      add_scaled(row, product, sums.of_run(run));
    });
    v_ = std::move(sums).total();
    double total = 0;
    for (const double run : captured) total += run;
    return total;
  }

  const Weights& weights_;
  std::vector<double> v_;
  double captured_ = 0;
  int threads_;
};

/// The best u for a given Vt, with that one as it is stored.
std::optional<LowRank> with_best_u(const Weights& weights, const std::vector<double>& vt, int threads) {
  const double unit = unit_of(vt);
  if (unit == 0) return std::nullopt;
  std::vector<double> stored;
  for (const float x : round_to_half(vt, unit)) stored.push_back(x);
  const double square = squared_length(stored);
  std::vector<double> u(static_cast<size_t>(weights.rows()));
  for_rows(weights, threads, [&](size_t, int64_t r, std::span<const float> row) {
    u[static_cast<size_t>(r)] = dot(row, stored) / square;
  });
  return term_of(u, stored);
}

Weights matrix_of(const std::vector<float>& values, int64_t cols) {
  return Weights({.dtype = DType::f32,
                  .shape = {static_cast<int64_t>(values.size()) / cols, cols},
                  .bytes = std::as_bytes(std::span(values))});
}

/// What the best codebook's error is in proportion to at a high rate: the cube of the integral of the density's cube
/// root, here over `kBins` bins, without the values farthest from the mean.
double high_rate_error(std::vector<float> values, double outliers) {
  constexpr size_t kBins = 512;  // wider than the steps of bfloat16 where that matters
  const double mean = sum_of(values, [](double x) { return x; }) / static_cast<double>(values.size());
  const auto kept = values.size() - static_cast<size_t>(outliers * static_cast<double>(values.size()));
  const auto nearer = [&](float a, float b) { return std::abs(a - mean) < std::abs(b - mean); };
  if (kept < values.size())
    std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(kept), nearer);
  values.resize(kept);
  if (values.empty()) return 0;
  const auto [least, most] = std::ranges::minmax(values);
  const double width = (static_cast<double>(most) - least) / kBins;
  if (!(width > 0)) return 0;
  std::vector<double> counts(kBins);
  for (const float value : values) {
    ++counts[std::min(kBins - 1, static_cast<size_t>((static_cast<double>(value) - least) * (1 / width)))];
  }
  double sum = 0;
  for (const double count : counts) sum += std::cbrt(count);
  return sum * sum * sum * width * width;
}

/// What the error of groups is in proportion to that each have a scale.
double grouped_error(const Weights& weights, int64_t group) {
  std::vector<float> row(static_cast<size_t>(weights.cols()));
  double sum = 0;
  for (int64_t r = 0; r < weights.rows(); ++r) {
    weights.read(r * weights.cols(), row);
    for (size_t begin = 0; begin < row.size(); begin += static_cast<size_t>(group)) {
      const size_t end = std::min(row.size(), begin + static_cast<size_t>(group));
      double largest = 0;
      for (size_t c = begin; c < end; ++c) largest = std::max(largest, static_cast<double>(std::abs(row[c])));
      sum += largest * largest;
    }
  }
  return sum;
}

/// Whole rows, evenly apart: as many as hold `most` weights, but `least` at least, or all.
std::vector<float> sample_of(const Weights& weights, int64_t most, int64_t least) {
  const int64_t rows = std::min(weights.rows(), std::max(most / weights.cols(), least));
  std::vector<float> sample(static_cast<size_t>(rows * weights.cols()));
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = weights.rows() * i / rows;
    weights.read(row * weights.cols(), {sample.data() + i * weights.cols(), static_cast<size_t>(weights.cols())});
  }
  return sample;
}

/// At most about that many weights of all rows and columns.
std::vector<float> spread_of(const Weights& weights, size_t most) {
  std::vector<float> values(static_cast<size_t>(weights.size()));
  weights.read(0, values);
  auto stride = values.size() / most + 1;
  while (stride > 1 && std::gcd(stride, static_cast<size_t>(weights.cols())) > 1) ++stride;
  size_t count = 0;
  for (size_t i = 0; i < values.size(); i += stride) values[count++] = values[i];
  values.resize(count);
  return values;
}

struct Candidate {
  TermProposal proposal;
  std::optional<LowRank> term;
};

/// The terms of rank 1 that take `least_share` of the squared weights with them.
std::vector<Candidate> candidates(const Weights& weights, double least_share) {
  constexpr int kFirstSteps = 2, kSteps = 2;
  using Kind = TermProposal::Kind;
  Moments moments = moments_of(weights, 1);
  std::vector<Candidate> found;
  if (!(moments.squares > 0) || !std::isfinite(moments.squares)) return found;
  const double least = least_share * moments.squares;
  const std::vector<double> row_ones(moments.row_means.size(), 1), column_ones(moments.column_means.size(), 1);
  if (squared_length(moments.column_means) * static_cast<double>(row_ones.size()) > least) {
    found.push_back({{Kind::column_means, {}}, term_of(row_ones, moments.column_means)});
  }
  if (squared_length(moments.row_means) * static_cast<double>(column_ones.size()) > least) {
    found.push_back({{Kind::row_means, {}}, term_of(moments.row_means, column_ones)});
  }
  PowerIteration iteration(weights, std::move(moments.start), 1);
  if (!iteration.run(kFirstSteps) || !(iteration.captured() > least) || !iteration.run(kSteps)) return found;
  TermProposal pair{.kind = Kind::leading_pair, .start = std::move(iteration).v()};
  std::optional<LowRank> term = with_best_u(weights, pair.start, 1);
  found.push_back({std::move(pair), std::move(term)});
  return found;
}

}  // namespace

std::optional<TermProposal> propose_term(const Weights& weights, const ProposalTerms& terms) {
  // A sample's own leading pair takes up to 1 / rows + 1 / cols of the squares with it, whatever that of all is.
  constexpr int64_t kSample = 1 << 18, kSampleRows = 256;
  constexpr size_t kErrorSample = 1 << 16;
  // Of many matrices, a term that takes the share s of the squares with it lowered the error of none by more than
  // (1 - s)^3.
  const double least_share = 1 - std::pow(terms.least_gain, -1.0 / 3);
  const std::vector<float> sample = sample_of(weights, kSample, kSampleRows);
  const Weights sampled = matrix_of(sample, weights.cols());
  const auto error_of = [&](const Weights& rest, double outliers) {
    return terms.group > 0 ? grouped_error(rest, terms.group)
                           : high_rate_error(spread_of(rest, kErrorSample), outliers);
  };
  std::optional<TermProposal> best;
  double least = 0;
  for (Candidate& candidate : candidates(sampled, least_share)) {
    if (!candidate.term) continue;
    if (least == 0) least = error_of(sampled, terms.outliers_now) / terms.least_gain;
    const double error = error_of(sampled.less(*candidate.term), terms.outliers_then);
    if (!(error < least)) continue;
    least = error;
    best = std::move(candidate.proposal);
  }
  return best;
}

std::optional<LowRank> rank_one_term(const Weights& weights, const TermProposal& proposal, int threads) {
  constexpr int kSteps = 2;
  if (proposal.kind == TermProposal::Kind::leading_pair) {
    PowerIteration iteration(weights, proposal.start, threads);
    if (!iteration.run(kSteps)) return std::nullopt;
    return with_best_u(weights, std::move(iteration).v(), threads);
  }
  const Moments moments = moments_of(weights, threads);
  const std::vector<double> row_ones(moments.row_means.size(), 1), column_ones(moments.column_means.size(), 1);
  return proposal.kind == TermProposal::Kind::column_means ? term_of(row_ones, moments.column_means)
                                                           : term_of(moments.row_means, column_ones);
}

std::optional<LowRank> leading_pair(const Weights& weights, int threads) {
  constexpr int kSteps = 20;
  PowerIteration iteration(weights, moments_of(weights, threads).start, threads);
  if (!iteration.run(kSteps)) return std::nullopt;
  return with_best_u(weights, std::move(iteration).v(), threads);
}

void check_low_rank(std::optional<int> rank) {
  if (rank && (*rank < 0 || *rank > kMaxLowRank)) {
    throw Error(fmt::format("low rank is {}, expected 0 to {}", *rank, kMaxLowRank));
  }
}

Weights less_leading_pairs(Weights weights, int64_t rank, int threads) {
  while (weights.term().rank < rank) {
    const std::optional<LowRank> pair = leading_pair(weights, threads);
    if (!pair) break;
    weights = weights.less(*pair);
  }
  return weights;
}

StoredFactors stored_factors(const LowRank& term) {
  const auto rank = static_cast<size_t>(term.rank);
  StoredFactors stored;
  for (size_t n = 0; n < rank; ++n) {
    std::vector<double> column;
    for (size_t i = n; i < term.u_scaled.size(); i += rank) column.push_back(term.u_scaled[i]);
    stored.s.push_back(static_cast<float>(unit_of(column)));
  }
  for (size_t i = 0; i < term.u_scaled.size(); ++i) {
    stored.u.push_back(f16_from_float(term.u_scaled[i] / stored.s[i % rank]));
  }
  for (const float value : term.vt) stored.vt.push_back(f16_from_float(value));
  return stored;
}

std::vector<EncodedPart> parts_of(const LowRank& term, const Shape& shape) {
  if (term.rank == 0) return {};
  const StoredFactors stored = stored_factors(term);
  const auto part = [](const PartPlan& plan, const auto& values) {
    const auto bytes = std::as_bytes(std::span(values));
    return EncodedPart{std::string(plan.suffix), plan.dtype, plan.shape, {bytes.begin(), bytes.end()}};
  };
  const std::vector<PartPlan> plans = planned_parts(term.rank, shape);
  return {part(plans[0], stored.u), part(plans[1], stored.s), part(plans[2], stored.vt)};
}

std::vector<PartPlan> planned_parts(int64_t rank, const Shape& shape) {
  if (rank == 0) return {};
  return {
      {"svd_U", DType::f16, {shape[0], rank}}, {"svd_s", DType::f32, {rank}}, {"svd_Vt", DType::f16, {rank, shape[1]}}};
}

}  // namespace hxq
