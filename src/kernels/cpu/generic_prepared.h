#pragma once

#include <memory>

#include "kernels/cpu_matrix.h"

namespace hxq::kernels::cpu {

/// Any stored matrix, for codecs without kernels of their own: panels of rows are decoded by the codec's specification,
/// then multiplied as floats. The weights are exactly what `decode_rows` gives.
class GenericMatrix final : public CpuMatrix {
 public:
  explicit GenericMatrix(std::unique_ptr<const StoredMatrix> stored) noexcept
      : CpuMatrix(*stored), stored_(std::move(stored)) {}

  InputTransform transform() const noexcept override { return stored_->transform(); }
  int64_t bytes_read() const noexcept override { return stored_->bytes_read(); }
  void linear(const LinearArgs& args, const CpuContext& context) const noexcept override;
  void gather_rows(const int32_t* ids, int64_t count, float* out, const CpuContext& context) const noexcept override;
  void decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept override;

 private:
  std::unique_ptr<const StoredMatrix> stored_;
};

}  // namespace hxq::kernels::cpu
