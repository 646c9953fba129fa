#pragma once

#include "kernels/cuda/decode.h"
#include "kernels/cuda/host_device.h"
#include "kernels/cuda/linear.h"

/// Products with grouped matrices (docs/format.md, "Grouped levels"), and rows of them.
namespace hxq::cuda {

/// A grouped matrix in device memory: indices and scales as they are on disk. The low-rank term is floats.
struct GroupedWeight {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group = 8;                    ///< columns that share a scale, a multiple of 8
  int32_t bits = 8;                     ///< of an index, 3 to 8
  const void* indices = nullptr;        // [rows, ceil(cols * bits / 8)], readable up to the next multiple of 4 bytes
  const uint8_t* scales = nullptr;      // [rows, ceil(cols / group)], likewise
  const float* levels = nullptr;        // [2^bits]
  const float* scale_levels = nullptr;  // [256]
  int32_t level_parts = 0;              ///< BF16 numbers whose sum every level is, 1 or 2; 0: more
  int32_t rank = 0;                     ///< of the low-rank term, 0: none
  const float* low_rank_u = nullptr;    // [rows, rank], scaled
  const float* low_rank_vt = nullptr;   // [rank, cols]

  HXQ_HOST_DEVICE int64_t row_bytes() const { return (cols * bits + 7) / 8; }
  HXQ_HOST_DEVICE int64_t groups() const { return (cols + group - 1) / group; }
};

using GroupedProduct = ProductWith<GroupedWeight>;

/// As the functions of the same names in linear.h and decode.h. Few tokens are computed in float at either precision.
/// Many go through cuBLAS where it is at hand: `fast` with weights and x rounded to BF16, `exact` with both as F32.
size_t linear_workspace(const GroupedWeight& weight, int64_t tokens) noexcept;
Status linear(const GroupedWeight& weight, const LinearArgs& args, Stream stream) noexcept;
Status gather_rows(const GroupedWeight& weight, const GatherArgs& args, Stream stream) noexcept;
Status decode_rows(const GroupedWeight& weight, const DecodeArgs& args, Stream stream) noexcept;

/// Products of one token with 1 to kMaxFusedProducts matrices of as many columns, in one kernel.
bool supports_fused_linear(const FusedInput& input, const GroupedProduct* products, int64_t count) noexcept;
Status fused_linear(const FusedInput& input, const GroupedProduct* products, int64_t count, Stream stream) noexcept;

}  // namespace hxq::cuda
