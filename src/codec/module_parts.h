#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// The stored parts of one compressed module, for a codec that reads them, and messages about them.
class ModuleParts {
 public:
  ModuleParts(const Checkpoint& checkpoint, std::string_view module) : checkpoint_(checkpoint), module_(module) {}

  std::string_view module() const { return module_; }
  std::string key(std::string_view part) const;

  /// The part, or null if it is absent or has no elements.
  const TensorView* find(std::string_view part) const { return find_tensor(key(part)); }
  /// A tensor outside the module's parts: the parameter itself or a copy of it.
  const TensorView* find_tensor(std::string_view name) const;

  /// The part. Throws `Error` if it is absent or has no elements.
  const TensorView& get(std::string_view part) const;
  /// The same, and it has this dtype.
  const TensorView& get(std::string_view part, DType dtype) const;
  /// The part as floats, from F32, F16 or BF16; all are finite, or an `Error` is thrown.
  std::vector<float> floats(std::string_view part) const;

  void require_shape(std::string_view part, const Shape& expected) const;
  /// Throws `Error` unless `shape`, [rows, cols] by the part, is that of the parameter (`Codec::read`).
  void require_matrix(std::string_view part, const Shape& shape, const Shape& expected) const;

  /// Throws `Error` that names file and tensor, and with `byte` the place of that byte of the part.
  [[noreturn]] void fail(std::string_view part, const std::string& message, std::optional<uint64_t> byte = {}) const;

 private:
  const Checkpoint& checkpoint_;
  std::string_view module_;
};

/// A parameter's shape as a matrix: the dimensions before the last taken together. Empty stays empty.
Shape as_matrix(const Shape& shape);

}  // namespace hxq
