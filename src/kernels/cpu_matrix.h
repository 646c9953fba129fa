#pragma once

#include "kernels/cpu_context.h"
#include "kernels/dense_matrix.h"
#include "kernels/kernels.h"

namespace hxq::kernels {

namespace cpu {
class PreparedCodebook;
class PreparedGrouped;
}  // namespace cpu

/// The products of kernels.h on the CPU, by how the matrix is stored.
void linear(const cpu::PreparedCodebook& weight, const LinearArgs& args, const CpuContext& context) noexcept;
void linear(const cpu::PreparedGrouped& weight, const LinearArgs& args, const CpuContext& context) noexcept;
void linear(const DenseMatrix& weight, const LinearArgs& args, const CpuContext& context) noexcept;
void gather_rows(const cpu::PreparedCodebook& weight, const int32_t* ids, int64_t count, float* out,
                 const CpuContext& context) noexcept;
void gather_rows(const cpu::PreparedGrouped& weight, const int32_t* ids, int64_t count, float* out,
                 const CpuContext& context) noexcept;
void gather_rows(const DenseMatrix& weight, const int32_t* ids, int64_t count, float* out,
                 const CpuContext& context) noexcept;

/// A matrix that the CPU prepared: knows how it is multiplied. Operations are called by all threads of a team with the
/// same arguments, and complete for all of them on return.
class CpuMatrix : public PreparedMatrix {
 public:
  using PreparedMatrix::PreparedMatrix;

  /// What `linear` does to x first, and `decode_rows` leaves out.
  virtual InputTransform transform() const noexcept { return {}; }

  /// y = W transform(x) (+ bias) (+ y); see kernels::linear.
  virtual void linear(const LinearArgs& args, const CpuContext& context) const noexcept = 0;

  /// out[i, :] = row ids[i] of the dense matrix: decoded to float, the transform undone. ids are in range.
  virtual void gather_rows(const int32_t* ids, int64_t count, float* out, const CpuContext& context) const noexcept = 0;

  /// Rows [begin, end) of W to out [end - begin, cols]: what transform(x) is multiplied with.
  virtual void decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept = 0;
};

}  // namespace hxq::kernels
