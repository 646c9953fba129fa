#include "compress/policy.h"

namespace hxq {
namespace {

int64_t source_bytes(const Shape& shape, DType dtype) noexcept {
  return shape[0] * shape[1] * static_cast<int64_t>(size_of(dtype));
}

}  // namespace

const Encoder* choose_codec(const Encoding& encoding, Role role, const Shape& shape, DType dtype) noexcept {
  if (!is_matrix(role) || shape.size() != 2 || !is_float(dtype)) return nullptr;
  return encoding.encoder->expected_bytes(shape, encoding.options) < source_bytes(shape, dtype) ? encoding.encoder
                                                                                                : nullptr;
}

const Encoder* choose_codec_by_shape(const Encoding& encoding, const Shape& shape, DType dtype) noexcept {
  if (shape.size() != 2 || !is_float(dtype)) return nullptr;
  if (shape[0] < kMinDimension || shape[1] < kMinDimension) return nullptr;
  return 4 * encoding.encoder->expected_bytes(shape, encoding.options) <= 3 * source_bytes(shape, dtype)
             ? encoding.encoder
             : nullptr;
}

}  // namespace hxq
