#include "codec/policy.h"

namespace hxq {
namespace {

constexpr int64_t kCodebookBytes = 256 * 4;

bool is_floating_point(DType dtype) noexcept {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

}  // namespace

std::string_view name_of(Codec codec) noexcept { return codec == Codec::codebook ? "codebook" : "exact"; }

Codec choose_codec(Role role, const Shape& shape, DType dtype) noexcept {
  const bool multiplied = role == Role::embedding || role == Role::projection || role == Role::head;
  if (!multiplied || shape.size() != 2 || !is_floating_point(dtype)) return Codec::exact;
  const int64_t weights = shape[0] * shape[1];
  const bool smaller = weights + kCodebookBytes < weights * static_cast<int64_t>(size_of(dtype));
  return smaller ? Codec::codebook : Codec::exact;
}

Codec choose_codec_by_shape(const Shape& shape, DType dtype) noexcept {
  if (shape.size() != 2 || !is_floating_point(dtype)) return Codec::exact;
  if (shape[0] < kMinDimension || shape[1] < kMinDimension) return Codec::exact;
  const int64_t weights = shape[0] * shape[1];
  const int64_t source_bytes = weights * static_cast<int64_t>(size_of(dtype));
  return 4 * (weights + kCodebookBytes) <= 3 * source_bytes ? Codec::codebook : Codec::exact;
}

}  // namespace hxq
