#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "codec/encoder.h"
#include "codec/weights.h"
#include "hxq/tensor.h"

namespace hxq {

/// Finds low-rank terms that may be stored apart from the weights of a matrix. Sums are in double, in an order that
/// does not depend on the number of threads. Factors are what a file holds: Vt in binary16, U in binary16 times a power
/// of two.

/// A term of rank 1 that is likely to pay.
struct TermProposal {
  enum class Kind : uint8_t {
    column_means,  ///< U of ones
    row_means,     ///< Vt of ones
    leading_pair,  ///< of singular vectors
  };
  Kind kind = Kind::leading_pair;
  std::vector<double> start = {};  ///< [cols] leading_pair: nearly its Vt
};

/// When a term is worth a closer look.
struct ProposalTerms {
  double outliers_now = 0;   ///< share of the weights that is stored exactly without the term, 0 to 1
  double outliers_then = 0;  ///< and with it
  double least_gain = 1;     ///< factor by which the error must fall
  int64_t group = 0;         ///< columns that share a scale; 0: all weights share their levels
};

/// The term of rank 1 that would help most, judged on a sample (whole rows of the matrix, evenly apart): the error that
/// the best codebook leaves by the high-rate formula of Panter and Dite (1951), or of groups, whose scales follow their
/// largest weights, the sum of these squared. None if no term lowers that error by `least_gain`.
std::optional<TermProposal> propose_term(const Weights& weights, const ProposalTerms& terms);

/// The proposed term of all weights. None if the weights are zero or too large or small for the factors.
std::optional<LowRank> rank_one_term(const Weights& weights, const TermProposal& proposal, int threads);

/// The leading singular pair by power iteration; none as for `rank_one_term`.
std::optional<LowRank> leading_pair(const Weights& weights, int threads);

/// The weights less that many leading pairs; fewer where there are no more.
Weights less_leading_pairs(Weights weights, int64_t rank, int threads);

/// A term that was found here, as files hold it.
struct StoredFactors {
  std::vector<uint16_t> u = {};   ///< binary16 [rows, rank]
  std::vector<float> s = {};      ///< [rank], powers of two
  std::vector<uint16_t> vt = {};  ///< binary16 [rank, cols]
};
StoredFactors stored_factors(const LowRank& term);

/// The parts that hold them; none for rank 0.
std::vector<EncodedPart> parts_of(const LowRank& term, const Shape& shape);

/// The same before they are known.
std::vector<PartPlan> planned_parts(int64_t rank, const Shape& shape);

/// Bytes of them.
constexpr int64_t low_rank_bytes(int64_t rank, const Shape& shape) noexcept {
  return rank * (2 * (shape[0] + shape[1]) + 4);
}

/// Bits per weight of a term of rank 1.
constexpr double term_bits(const Shape& shape) noexcept {
  return 8 * static_cast<double>(low_rank_bytes(1, shape)) / static_cast<double>(shape[0] * shape[1]);
}

/// The highest rank of a term where it is not told: products must not notice it.
inline constexpr int64_t kMaxChosenRank = 4;

/// Throws `Error` for a rank that is told and cannot be.
void check_low_rank(std::optional<int> rank);

/// Bytes of a term of the rank that is told; of one that is chosen, which pays, 0.
inline int64_t told_term_bytes(std::optional<int> rank, const Shape& shape) noexcept {
  return rank ? low_rank_bytes(std::min<int64_t>({*rank, shape[0], shape[1]}), shape) : 0;
}

}  // namespace hxq
