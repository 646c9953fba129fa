#pragma once

#include <string>
#include <variant>
#include <vector>

#include "codec/codebook.h"
#include "desc/model_desc.h"
#include "io/checkpoint.h"
#include "kernels/kernels.h"

namespace hxq {

/// A matrix as it is stored. This file and its .cc are the only ones above the kernels that know the alternatives.
using Weight = std::variant<kernels::DenseMatrix, CodebookMatrix>;

/// The matrix `desc` names, as a view of the checkpoint's mapped bytes (which must outlive it).
/// Throws `Error` if it is absent or its shape or dtype is not as described.
Weight load_matrix(const Checkpoint& checkpoint, const WeightDesc& desc);

/// A small tensor (norm, bias, filter, SSM parameter) widened to float, decoded if it is stored compressed.
/// Throws `Error` as `load_matrix` does, and for a value that is not finite.
std::vector<float> load_vector(const Checkpoint& checkpoint, const WeightDesc& desc);

/// [rows, cols] to [cols, rows].
std::vector<float> transpose(const std::vector<float>& matrix, int64_t rows, int64_t cols);

bool is_compressed(const Weight& weight) noexcept;

/// Bytes of the weight that one matrix-vector product reads.
int64_t bytes_read(const Weight& weight) noexcept;

/// y = x W^T; see kernels::linear.
void linear(const Weight& weight, const kernels::LinearArgs& args, const kernels::Context& context) noexcept;

/// out[i, :] = row ids[i]; see kernels::gather_rows.
void gather_rows(const Weight& weight, const int32_t* ids, int64_t count, float* out,
                 const kernels::Context& context) noexcept;

}  // namespace hxq
