#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace hxq {

struct CodebookMatrix;

/// What an outlier changes in a product with x: y[row] += change * x[col], change = value - the codebook's weight.
struct OutlierChange {
  uint32_t row;
  uint32_t col;
  float change;
};

/// The changes of a matrix's outliers, in the order of its sidecar. They depend on indices all over the matrix, which
/// opening a model should not read: so they are worked out when they are first asked for, then kept. A copy works out
/// its own, for it may be given other outliers.
class OutlierChanges {
 public:
  OutlierChanges();
  OutlierChanges(const OutlierChanges&);
  OutlierChanges& operator=(const OutlierChanges&);
  OutlierChanges(OutlierChanges&&) noexcept;
  OutlierChanges& operator=(OutlierChanges&&) noexcept;
  ~OutlierChanges();

  /// Those of `matrix`, which is the one that holds this object and did not change since the first call. Any number of
  /// threads may call. Ends the program if memory runs out.
  std::span<const OutlierChange> of(const CodebookMatrix& matrix) const noexcept;

 private:
  struct Known;
  std::unique_ptr<Known> known_;
};

}  // namespace hxq
