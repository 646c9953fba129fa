#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "codec/codebook/matrix.h"
#include "kernels/cpu/codebook_lookup_planes.h"
#include "kernels/cpu_matrix.h"
#include "kernels/outlier_change.h"

namespace hxq::kernels::cpu {

/// A codebook matrix with what kernels of the CPU want beside it.
class PreparedCodebook final : public CpuMatrix {
 public:
  explicit PreparedCodebook(std::unique_ptr<const CodebookMatrix> stored);

  const CodebookMatrix& stored() const noexcept { return *stored_; }

  /// Of a scalar codebook; none for codewords of several weights.
  const LookupPlanes& planes() const noexcept { return planes_; }

  /// In the order of the sidecar; there once `finish` was called.
  std::span<const OutlierChange> outlier_changes() const noexcept { return changes_; }

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
  mutable std::once_flag changes_once_ = {};
  mutable std::vector<OutlierChange> changes_ = {};
};

std::unique_ptr<const CpuMatrix> prepare_codebook(std::unique_ptr<const StoredMatrix> stored);

}  // namespace hxq::kernels::cpu
