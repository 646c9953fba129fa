#pragma once

#include <memory>
#include <vector>

#include "desc/model_desc.h"
#include "io/checkpoint.h"
#include "kernels/device.h"

namespace hxq {

/// A matrix that a layer multiplies with, however it is stored. Null where a model has none.
using Weight = std::unique_ptr<const kernels::PreparedMatrix>;

/// The matrix `desc` names, over the checkpoint's mapped bytes (which must outlive it), as the device multiplies with
/// it. Throws `Error` if it is absent or its shape or dtype is not as described, `OutOfMemory`.
Weight load_matrix(const Checkpoint& checkpoint, const WeightDesc& desc, const kernels::Device& device);

/// A small tensor (norm, bias, filter, SSM parameter) widened to float, decoded if it is stored compressed.
/// Throws `Error` as `load_matrix` does, and for a value that is not finite.
std::vector<float> load_vector(const Checkpoint& checkpoint, const WeightDesc& desc);

/// [rows, cols] to [cols, rows].
std::vector<float> transpose(const std::vector<float>& matrix, int64_t rows, int64_t cols);

/// -exp(A_log), what the recurrences of both Mambas decay with.
std::vector<float> decay_rates(std::vector<float> a_log);

}  // namespace hxq
