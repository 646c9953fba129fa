#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hxq {

/// Element types of safetensors that the project reads. Little-endian in files and in memory.
/// Those from u32 on are copied as they are; nothing computes with them.
enum class DType : uint8_t {
  f32,
  f16,
  bf16,
  f64,
  i64,
  i32,
  i16,
  u16,
  u8,
  i8,
  boolean,
  u32,
  u64,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  c64
};

/// Bytes per element.
size_t size_of(DType dtype) noexcept;

/// Whether weights of that type can be computed with and compressed: F32, F16 or BF16.
constexpr bool is_float(DType dtype) noexcept {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

/// The safetensors name: "F32", "BF16", "U8", ...
std::string_view name_of(DType dtype) noexcept;

/// The type with that safetensors name, or nothing.
std::optional<DType> find_dtype(std::string_view name) noexcept;

/// The type with that safetensors name. Throws `Error` for a name that is not known.
DType dtype_from_name(std::string_view name);

/// Dimensions, outermost first; empty for a scalar.
using Shape = std::vector<int64_t>;

/// Product of the dimensions; 1 for a scalar. Throws `Error` on a negative dimension or if it does not fit in int64.
int64_t element_count(const Shape& shape);

/// "[768, 3072]", for messages.
std::string to_string(const Shape& shape);

/// A tensor whose bytes belong to somebody else (usually a mapped file). Row-major, contiguous.
/// `bytes.data()` need not be aligned for `dtype`: read elements with memcpy or unaligned loads.
struct TensorView {
  DType dtype = DType::f32;
  Shape shape = {};
  std::span<const std::byte> bytes = {};

  int64_t size() const { return element_count(shape); }
};

/// Widens (or narrows, for F64) a floating-point tensor to float, element by element.
/// Throws `Error` if the tensor is not of a floating-point type.
std::vector<float> to_float(const TensorView& tensor);

/// Elements [begin, begin + out.size()) of a tensor as floats. They must be there, and the tensor's type F32, F16 or
/// BF16: neither is checked.
void read_floats(const TensorView& tensor, int64_t begin, std::span<float> out) noexcept;

}  // namespace hxq
