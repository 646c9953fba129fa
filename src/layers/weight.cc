#include "layers/weight.h"

#include <fmt/format.h>

#include <cmath>

#include "codec/codebook_read.h"
#include "codec/decode_reference.h"
#include "codec/model_tensors.h"
#include "hxq/error.h"

namespace hxq {
Weight load_matrix(const Checkpoint& checkpoint, const WeightDesc& desc) {
  const StoredTensor stored = find_described(checkpoint, desc).value();
  if (stored.compressed) return read_codebook_matrix(checkpoint, stored.module, desc.shape);
  const TensorView& view = *checkpoint.find(stored.name);
  if (view.dtype != DType::f32 && view.dtype != DType::f16 && view.dtype != DType::bf16) {
    throw Error(fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(view.dtype)),
                checkpoint.place(stored.name));
  }
  return kernels::DenseMatrix{view.shape[0], view.shape[1], view.dtype, view.bytes.data()};
}

std::vector<float> load_vector(const Checkpoint& checkpoint, const WeightDesc& desc) {
  const StoredTensor stored = find_described(checkpoint, desc).value();
  if (stored.compressed) {
    std::vector<float> values(static_cast<size_t>(element_count(desc.shape)));
    const CodebookMatrix matrix = read_codebook_matrix(checkpoint, stored.module, desc.shape);
    decode_dense_rows(matrix, 0, matrix.rows, values);
    return values;
  }
  const TensorView& view = *checkpoint.find(stored.name);
  std::vector<float> values;
  try {
    values = to_float(view);
  } catch (const Error& error) {
    throw Error(error.what(), checkpoint.place(stored.name));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    throw Error(fmt::format("value {} is {}, expected a finite number", i, values[i]),
                checkpoint.place(stored.name, i * size_of(view.dtype)));
  }
  return values;
}

std::vector<float> transpose(const std::vector<float>& matrix, int64_t rows, int64_t cols) {
  std::vector<float> out(matrix.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      out[static_cast<size_t>(c * rows + r)] = matrix[static_cast<size_t>(r * cols + c)];
    }
  }
  return out;
}

bool is_compressed(const Weight& weight) noexcept { return std::holds_alternative<CodebookMatrix>(weight); }

int64_t bytes_read(const Weight& weight) noexcept {
  if (const auto* dense = std::get_if<kernels::DenseMatrix>(&weight)) {
    return dense->rows * dense->cols * static_cast<int64_t>(size_of(dense->dtype));
  }
  return bytes_read(std::get<CodebookMatrix>(weight));
}

void linear(const Weight& weight, const kernels::LinearArgs& args, const kernels::Context& context) noexcept {
  kernels::LinearArgs of_phase = args;
  of_phase.phase = args.tokens == 1 ? kernels::Phase::decode : kernels::Phase::prefill;
  std::visit([&](const auto& matrix) { kernels::linear(matrix, of_phase, context); }, weight);
}

void gather_rows(const Weight& weight, const int32_t* ids, int64_t count, float* out,
                 const kernels::Context& context) noexcept {
  std::visit([&](const auto& matrix) { kernels::gather_rows(matrix, ids, count, out, context); }, weight);
}

}  // namespace hxq
