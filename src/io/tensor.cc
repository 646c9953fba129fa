#include "hxq/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <bit>
#include <cstring>

#include "hxq/error.h"
#include "io/half.h"

namespace hxq {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  size_t size;
};

constexpr std::array kDTypes = {
    DTypeInfo{DType::f32, "F32", 4},
    DTypeInfo{DType::f16, "F16", 2},
    DTypeInfo{DType::bf16, "BF16", 2},
    DTypeInfo{DType::f64, "F64", 8},
    DTypeInfo{DType::i64, "I64", 8},
    DTypeInfo{DType::i32, "I32", 4},
    DTypeInfo{DType::i16, "I16", 2},
    DTypeInfo{DType::u16, "U16", 2},
    DTypeInfo{DType::u8, "U8", 1},
    DTypeInfo{DType::i8, "I8", 1},
    DTypeInfo{DType::boolean, "BOOL", 1},
    DTypeInfo{DType::u32, "U32", 4},
    DTypeInfo{DType::u64, "U64", 8},
    DTypeInfo{DType::f8_e4m3, "F8_E4M3", 1},
    DTypeInfo{DType::f8_e5m2, "F8_E5M2", 1},
    DTypeInfo{DType::f8_e8m0, "F8_E8M0", 1},
    DTypeInfo{DType::f8_e4m3fnuz, "F8_E4M3FNUZ", 1},
    DTypeInfo{DType::f8_e5m2fnuz, "F8_E5M2FNUZ", 1},
    DTypeInfo{DType::c64, "C64", 8},
};

const DTypeInfo& info(DType dtype) noexcept { return kDTypes[static_cast<size_t>(dtype)]; }

template <class T, class Convert>
void widen(const std::byte* from, std::span<float> out, Convert convert) noexcept {
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    out[i] = convert(value);
  }
}

/// float_from_f16 without a branch, so that several are done at once.
float float_from_half(uint16_t bits) noexcept {
  const uint32_t magnitude = bits & 0x7fffu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled), other = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  return std::bit_cast<float>(static_cast<uint32_t>(bits & 0x8000u) << 16 | (magnitude < 0x7c00u ? finite : other));
}

}  // namespace

size_t size_of(DType dtype) noexcept { return info(dtype).size; }

std::string_view name_of(DType dtype) noexcept { return info(dtype).name; }

std::optional<DType> find_dtype(std::string_view name) noexcept {
  for (const DTypeInfo& known : kDTypes) {
    if (known.name == name) return known.dtype;
  }
  return std::nullopt;
}

DType dtype_from_name(std::string_view name) {
  if (const std::optional<DType> dtype = find_dtype(name)) return *dtype;
  throw Error(fmt::format("unknown dtype '{}'", name));
}

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(count, dimension, &count)) {
      throw Error(fmt::format("shape {} is not valid", to_string(shape)));
    }
  }
  return count;
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::vector<float> to_float(const TensorView& tensor) {
  if (!is_float(tensor.dtype) && tensor.dtype != DType::f64) {
    throw Error(fmt::format("dtype is {}, expected a floating-point type", name_of(tensor.dtype)));
  }
  std::vector<float> out(static_cast<size_t>(tensor.size()));
  if (tensor.dtype == DType::f64) {
    widen<double>(tensor.bytes.data(), out, [](double v) { return static_cast<float>(v); });
  } else {
    read_floats(tensor, 0, out);
  }
  return out;
}

void read_floats(const TensorView& tensor, int64_t begin, std::span<float> out) noexcept {
  if (out.empty()) return;
  const std::byte* from = tensor.bytes.data() + static_cast<size_t>(begin) * size_of(tensor.dtype);
  switch (tensor.dtype) {
    case DType::bf16:
      return widen<uint16_t>(from, out, float_from_bf16);
    case DType::f16:
      return widen<uint16_t>(from, out, float_from_half);
    default:
      std::memcpy(out.data(), from, out.size_bytes());
  }
}

}  // namespace hxq
