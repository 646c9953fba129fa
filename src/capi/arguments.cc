#include "capi/arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "hxq/model.h"

namespace hxq::capi {
namespace {

/// Elements of 8 bytes or less that an object in memory can have.
constexpr int64_t kMaxElements = std::numeric_limits<std::ptrdiff_t>::max() / 8;

bool multiplies(int64_t a, int64_t b, int64_t& product) {
  return !__builtin_mul_overflow(a, b, &product) && product <= kMaxElements;
}

// DType begins with the types of the interface, in the order of hxq_dtype.
constexpr bool same(DType type, hxq_dtype dtype) { return static_cast<int>(type) == static_cast<int>(dtype); }
static_assert(same(DType::f32, HXQ_F32) && same(DType::f16, HXQ_F16) && same(DType::bf16, HXQ_BF16) &&
              same(DType::f64, HXQ_F64) && same(DType::i64, HXQ_I64) && same(DType::i32, HXQ_I32) &&
              same(DType::i16, HXQ_I16) && same(DType::u16, HXQ_U16) && same(DType::u8, HXQ_U8) &&
              same(DType::i8, HXQ_I8) && same(DType::boolean, HXQ_BOOL));

}  // namespace

void require(bool condition, const char* message) {
  if (!condition) throw InvalidArgument(message);
}

void require_pointers(std::initializer_list<NamedPointer> pointers) {
  for (const NamedPointer& given : pointers) {
    if (given.pointer == nullptr) throw InvalidArgument(fmt::format("{} is null", given.name));
  }
  require_aligned(pointers);
}

void require_aligned(std::initializer_list<NamedPointer> pointers) {
  for (const NamedPointer& given : pointers) {
    if (reinterpret_cast<uintptr_t>(given.pointer) % given.alignment != 0) {
      throw InvalidArgument(fmt::format("{} is not aligned to {} bytes", given.name, given.alignment));
    }
  }
}

void require_rows(const char* name, const void* data, DType dtype) {
  NamedPointer rows(name, data);
  rows.alignment = size_of(dtype);
  require_pointers({rows});
}

std::string optional_text(const char* name, const char* text) {
  if (text == nullptr) return "";
  if (*text == '\0') throw InvalidArgument(fmt::format("{} is an empty text, expected null for none", name));
  return text;
}

void require_sizes(std::initializer_list<NamedSize> sizes) {
  int64_t product = 1;
  for (const auto& [name, value] : sizes) {
    if (value < 1) throw InvalidArgument(fmt::format("{} is {}, expected 1 or more", name, value));
    if (!multiplies(product, value, product)) {
      throw InvalidArgument(fmt::format("{} is {}: no memory holds that much", name, value));
    }
  }
}

void require_count(const char* name, int64_t count, int64_t cols) {
  int64_t product = 0;
  if (count < 0) throw InvalidArgument(fmt::format("{} is {}, expected 0 or more", name, count));
  if (!multiplies(count, cols, product)) {
    throw InvalidArgument(fmt::format("{} is {}: no memory holds that much", name, count));
  }
}

int64_t stride_of(const char* name, int64_t stride, int64_t rows, int64_t cols) {
  if (stride == 0) return cols;
  int64_t product = 0;
  if (stride < cols) throw InvalidArgument(fmt::format("the stride of {} is {}, its rows have {}", name, stride, cols));
  if (!multiplies(rows, stride, product)) {
    throw InvalidArgument(fmt::format("the stride of {} is {}: no memory holds that much", name, stride));
  }
  return stride;
}

void require_threads(int32_t threads, int32_t least) {
  if (threads < least || threads > kMaxThreads) {
    throw InvalidArgument(fmt::format("{} threads, expected {} to {}", threads, least, kMaxThreads));
  }
}

Phase phase_of(int32_t phase) {
  if (phase != HXQ_PREFILL && phase != HXQ_DECODE) {
    throw InvalidArgument(fmt::format("phase is {}, expected HXQ_PREFILL or HXQ_DECODE", phase));
  }
  return phase == HXQ_DECODE ? Phase::decode : Phase::prefill;
}

Precision precision_of(int32_t precision) {
  if (precision != HXQ_FAST && precision != HXQ_EXACT) {
    throw InvalidArgument(fmt::format("precision is {}, expected HXQ_FAST or HXQ_EXACT", precision));
  }
  return precision == HXQ_EXACT ? Precision::exact : Precision::fast;
}

DType dtype_of(int32_t dtype) {
  if (dtype < HXQ_F32 || dtype > HXQ_BOOL) throw InvalidArgument(fmt::format("dtype {} is not an hxq_dtype", dtype));
  return static_cast<DType>(dtype);
}

DType float_dtype_of(int32_t dtype) {
  const DType type = dtype_of(dtype);
  if (!is_float(type)) {
    throw InvalidArgument(fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(type)));
  }
  return type;
}

Shape shape_of(const hxq_tensor& tensor) {
  if (tensor.rank < 0 || tensor.rank > 4) {
    throw InvalidArgument(fmt::format("rank is {}, expected 0 to 4", tensor.rank));
  }
  Shape shape(tensor.shape, tensor.shape + tensor.rank);
  int64_t product = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0 || (dimension > 0 && !multiplies(product, dimension, product))) {
      throw InvalidArgument(fmt::format("shape is {}: no tensor has it", to_string(shape)));
    }
  }
  return shape;
}

TensorView view_of(const hxq_tensor& tensor) {
  TensorView view{dtype_of(tensor.dtype), shape_of(tensor), {}};
  const auto bytes = static_cast<size_t>(view.size()) * size_of(view.dtype);
  require(tensor.data != nullptr || bytes == 0, "a tensor with elements has no data");
  view.bytes = {static_cast<const std::byte*>(tensor.data), bytes};
  return view;
}

Checkpoint checkpoint_of(const char* name, const hxq_tensor* parts, size_t count) {
  require_pointers({{"name", name}, {"parts", parts}});
  TensorMap tensors;
  for (size_t i = 0; i < count; ++i) {
    require(parts[i].name != nullptr, "a part of a matrix has no name");
    const bool added = tensors.emplace(fmt::format("{}.{}", name, parts[i].name), view_of(parts[i])).second;
    if (!added) throw InvalidArgument(fmt::format("{}.{} is given twice", name, parts[i].name));
  }
  return Checkpoint::over(std::move(tensors));
}

void require_parts_of(const Codec& codec, const hxq_tensor* parts, size_t count) {
  std::vector<const PartSpec*> given;
  for (size_t i = 0; i < count; ++i) {
    const std::string_view name = parts[i].name;
    const auto is_it = [&](const PartSpec& part) {
      return name == part.suffix || (!name.empty() && name == part.older_name);
    };
    const auto part = std::ranges::find_if(codec.parts, is_it);
    if (part == codec.parts.end()) throw InvalidArgument(fmt::format("'{}' is no part of codec '{}'", name, codec.id));
    if (element_count(shape_of(parts[i])) == 0) continue;  // stands for none
    if (std::ranges::count(given, &*part) > 0) {
      throw InvalidArgument(fmt::format("'{}' and '{}' are names of one part", part->suffix, part->older_name));
    }
    given.push_back(&*part);
  }
}

Shape matrix_shape_of(int64_t rows, int64_t cols) {
  if ((rows == 0) != (cols == 0) || rows < 0 || cols < 0) {
    throw InvalidArgument(fmt::format("shape is [{}, {}]", rows, cols));
  }
  return rows > 0 ? Shape{rows, cols} : Shape{};
}

}  // namespace hxq::capi
