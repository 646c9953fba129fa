#pragma once

#include <cstdint>
#include <span>

#include "codec/low_rank.h"
#include "hxq/tensor.h"

namespace hxq {

/// The weights that an encoder codes: a source's, less a low-rank term that is stored beside them. Nothing is copied
/// but the term: elements are worked out as they are read.
class Weights {
 public:
  /// `source`: F32, F16 or BF16, [rows, cols], possibly unaligned; its bytes must outlive the object.
  Weights(const TensorView& source, LowRank term = {});  // NOLINT(google-explicit-constructor): most have no term

  /// The same source, less one term more.
  Weights less(const LowRank& term) const;

  const TensorView& source() const noexcept { return source_; }
  const LowRank& term() const noexcept { return term_; }
  int64_t rows() const noexcept { return source_.shape[0]; }
  int64_t cols() const noexcept { return source_.shape[1]; }
  int64_t size() const noexcept { return source_.size(); }
  /// Whether every weight is a number of the source's 16 bits.
  bool in_16_bits() const noexcept { return source_.dtype != DType::f32 && term_.rank == 0; }

  /// The weights at flat positions [begin, begin + out.size()): source - term in double, rounded to float.
  void read(int64_t begin, std::span<float> out) const noexcept;
  float at(int64_t position) const noexcept;

  /// The source's elements, from flat position `begin` on.
  void read_source(int64_t begin, std::span<float> out) const noexcept;

  /// values + term in double, rounded to float: decoded weights become the decoded matrix's elements.
  void add_term(int64_t begin, std::span<float> values) const noexcept;

 private:
  /// values += sign * term.
  void add(double sign, int64_t begin, std::span<float> values) const noexcept;

  TensorView source_;
  LowRank term_;
};

}  // namespace hxq
