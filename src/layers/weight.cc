#include "layers/weight.h"

#include <fmt/format.h>

#include <cmath>

#include "codec/codec.h"
#include "folder/described_tensors.h"
#include "hxq/error.h"

namespace hxq {

Weight load_matrix(const Checkpoint& checkpoint, const WeightDesc& desc, const kernels::Device& device) {
  const StoredTensor stored = find_described(checkpoint, desc).value();
  if (stored.codec) return device.prepare(stored.codec->read(checkpoint, stored.module, desc.shape));
  const TensorView& view = *checkpoint.find(stored.name);
  if (!is_float(view.dtype)) {
    throw Error(fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(view.dtype)),
                checkpoint.place(stored.name));
  }
  return device.prepare(std::make_unique<ExactMatrix>(view));
}

std::vector<float> load_vector(const Checkpoint& checkpoint, const WeightDesc& desc) {
  const StoredTensor stored = find_described(checkpoint, desc).value();
  if (stored.codec) {
    std::vector<float> values(static_cast<size_t>(element_count(desc.shape)));
    const auto matrix = stored.codec->read(checkpoint, stored.module, desc.shape);
    decode_dense_rows(*matrix, 0, matrix->rows, values);
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

std::vector<float> decay_rates(std::vector<float> a_log) {
  for (float& a : a_log) a = -std::exp(a);
  return a_log;
}

}  // namespace hxq
