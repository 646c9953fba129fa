#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "codec/grouped/matrix.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu_matrix.h"

namespace hxq::kernels::cpu {

/// A grouped matrix with what kernels of the CPU want beside it.
class PreparedGrouped final : public CpuMatrix {
 public:
  explicit PreparedGrouped(std::unique_ptr<const GroupedMatrix> stored);

  const GroupedMatrix& stored() const noexcept { return *stored_; }

  /// The matrix as the code of the targets sees it; its rows' units are there once `finish` was called.
  GroupedView view() const noexcept;

  /// Finds the largest scale of every row, which opening a model should not read.
  void finish() const override;

  int64_t bytes_read() const noexcept override { return stored_->bytes_read(); }
  void linear(const LinearArgs& args, const CpuContext& context) const noexcept override;
  void gather_rows(const int32_t* ids, int64_t count, float* out, const CpuContext& context) const noexcept override;
  void decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept override;

 private:
  using BytePlane = std::array<uint8_t, 256>;
  using ScaleWords = std::array<uint32_t, 256>;

  void make_levels();
  void make_bytes();
  void make_scales();
  /// GroupedRow::scale_words of rows whose largest scale has this exponent, in units of scale_unit_.
  ScaleWords scale_words(int exponent) const;

  std::unique_ptr<const GroupedMatrix> stored_;
  alignas(64) std::array<BytePlane, 2> level_planes_ = {};
  alignas(64) std::array<int16_t, 256> level_words_ = {};
  alignas(64) std::array<int16_t, 64> whole_levels_ = {};
  alignas(64) std::array<uint8_t, 256> level_bytes_ = {};
  bool has_words_ = false;
  float level_multiple_ = 1;  ///< what levels are multiplied by in level_words_
  bool has_bytes_ = false;
  float scale_unit_ = 1;
  std::array<float, 256> scale_multiples_ = {};  ///< the scale levels / scale_unit_
  alignas(64) std::array<BytePlane, 4> scale_planes_ = {};
  float row_unit_ = 0;  ///< GroupedRow::unit, where M is of 1
  float planes_scale_ = 1;
  mutable std::once_flag rows_once_ = {};
  mutable std::map<int, ScaleWords> scale_words_ = {};  // by exponent
  mutable std::vector<GroupedRow> rows_ = {};
};

std::unique_ptr<const CpuMatrix> prepare_grouped(std::unique_ptr<const StoredMatrix> stored);

}  // namespace hxq::kernels::cpu
