#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "codec/codebook/matrix.h"
#include "kernels/cpu/codebook_lookup_planes.h"
#include "kernels/cpu_matrix.h"

namespace hxq::kernels::cpu {

/// A codebook matrix with what kernels of the CPU want beside it.
class PreparedCodebook final : public CpuMatrix {
 public:
  explicit PreparedCodebook(std::unique_ptr<const CodebookMatrix> stored);

  const CodebookMatrix& stored() const noexcept { return *stored_; }

  /// Of a scalar codebook; none for codewords of several weights.
  const LookupPlanes& planes() const noexcept { return planes_; }

  /// Of every outlier, see kernels::outlier_changes; there once `finish` was called.
  std::span<const float> outlier_changes() const noexcept { return changes_; }

  /// The most outliers that kOutlierRows rows in sequence have.
  int64_t most_outliers() const noexcept { return most_outliers_; }

  /// Works out `outlier_changes`: they depend on indices all over the matrix, which opening a model should not read.
  void finish() const override;

  InputTransform transform() const noexcept override { return stored_->transform(); }
  int64_t bytes_read() const noexcept override { return stored_->bytes_read(); }
  void linear(const LinearArgs& args, const CpuContext& context) const noexcept override;
  void gather_rows(const int32_t* ids, int64_t count, float* out, const CpuContext& context) const noexcept override;
  void decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept override;

 private:
  std::unique_ptr<const CodebookMatrix> stored_;
  LookupPlanes planes_ = {};
  int64_t most_outliers_ = 0;
  mutable std::once_flag changes_once_ = {};
  mutable std::vector<float> changes_ = {};
};

std::unique_ptr<const CpuMatrix> prepare_codebook(std::unique_ptr<const StoredMatrix> stored);

}  // namespace hxq::kernels::cpu
