#include "codec/module_parts.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "codec/codec.h"
#include "hxq/error.h"

namespace hxq {

std::string ModuleParts::key(std::string_view part) const { return part_key(module_, part); }

const TensorView* ModuleParts::find_tensor(std::string_view name) const {
  const TensorView* tensor = checkpoint_.find(name);
  return tensor != nullptr && tensor->size() > 0 ? tensor : nullptr;
}

const TensorView& ModuleParts::get(std::string_view part) const {
  if (const TensorView* tensor = find(part)) return *tensor;
  fail(part, "is missing or empty");
}

const TensorView& ModuleParts::get(std::string_view part, DType dtype) const {
  const TensorView& tensor = get(part);
  if (tensor.dtype != dtype) {
    fail(part, fmt::format("dtype is {}, expected {}", name_of(tensor.dtype), name_of(dtype)));
  }
  return tensor;
}

std::vector<float> ModuleParts::floats(std::string_view part) const {
  const TensorView& tensor = get(part);
  if (!is_float(tensor.dtype)) {
    fail(part, fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(tensor.dtype)));
  }
  std::vector<float> values = to_float(tensor);
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    fail(part, fmt::format("value {} is {}, expected a finite number", i, values[i]), i * size_of(tensor.dtype));
  }
  return values;
}

void ModuleParts::require_shape(std::string_view part, const Shape& expected) const {
  const Shape& found = get(part).shape;
  if (found != expected) fail(part, fmt::format("shape is {}, expected {}", to_string(found), to_string(expected)));
}

void ModuleParts::require_matrix(std::string_view part, const Shape& shape, const Shape& expected) const {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (shape.size() != 2 || shape[0] > kMax || shape[1] > kMax) {
    fail(part, fmt::format("is for {}, expected a matrix [rows, cols]", to_string(shape)));
  }
  if (!expected.empty() && shape != as_matrix(expected)) {
    fail(part, fmt::format("is for a matrix {}, expected {}", to_string(shape), to_string(expected)));
  }
}

void ModuleParts::fail(std::string_view part, const std::string& message, std::optional<uint64_t> byte) const {
  throw Error(message, checkpoint_.place(key(part), byte));
}

Shape as_matrix(const Shape& shape) {
  if (shape.size() <= 2) return shape;
  return {element_count(Shape(shape.begin(), shape.end() - 1)), shape.back()};
}

}  // namespace hxq
