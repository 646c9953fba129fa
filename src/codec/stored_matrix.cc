#include "codec/stored_matrix.h"

#include <bit>
#include <cstring>

#include "io/half.h"

namespace hxq {
namespace {

float element(DType dtype, const std::byte* at) {
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return dtype == DType::f16 ? float_from_f16(bits) : float_from_bf16(bits);
}

}  // namespace

ExactMatrix::ExactMatrix(const TensorView& tensor) : StoredMatrix(nullptr), dtype(tensor.dtype), bytes(tensor.bytes) {
  rows = tensor.shape[0];
  cols = tensor.shape[1];
}

void ExactMatrix::decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept {
  const auto first = static_cast<size_t>(begin * cols);
  const auto count = static_cast<size_t>((end - begin) * cols);
  const size_t size = size_of(dtype);
  for (size_t i = 0; i < count; ++i) out[i] = element(dtype, bytes.data() + (first + i) * size);
}

void decode_dense_rows(const StoredMatrix& matrix, int64_t begin, int64_t end, std::span<float> out) noexcept {
  matrix.decode_rows(begin, end, out);
  const std::span<const float> scales = matrix.transform().scales;
  if (scales.empty()) return;
  const auto weights = static_cast<size_t>((end - begin) * matrix.cols);
  for (size_t i = 0; i < weights; ++i) out[i] /= scales[i % scales.size()];
}

}  // namespace hxq
