#pragma once

#include <initializer_list>
#include <string>
#include <type_traits>

#include "capi/guard.h"
#include "codec/codec.h"
#include "hxq/arithmetic.h"
#include "hxq/tensor.h"
#include "io/checkpoint.h"

/// Checks of what a caller passes: every one throws `InvalidArgument` with one line.
namespace hxq::capi {

void require(bool condition, const char* message);

/// A pointer that must not be null, by its name.
template <class T>
T& not_null(T* pointer, const char* name) {
  if (pointer == nullptr) throw InvalidArgument(std::string(name) + " is null");
  return *pointer;
}

struct NamedPointer {
  template <class T>
  NamedPointer(const char* called, const T* address) : name(called), pointer(address) {
    if constexpr (std::is_arithmetic_v<T>) alignment = alignof(T);
  }

  const char* name;
  const void* pointer;
  size_t alignment = 1;  ///< that numbers need
};
/// None is null, and numbers are aligned.
void require_pointers(std::initializer_list<NamedPointer> pointers);
/// The same where null is allowed.
void require_aligned(std::initializer_list<NamedPointer> pointers);
/// Rows of that dtype: not null, and aligned.
void require_rows(const char* name, const void* data, DType dtype);

/// A text that may be null for the default, which is empty here. An empty one is no way to say so.
std::string optional_text(const char* name, const char* text);

struct NamedSize {
  const char* name;
  int64_t value;
};
/// Every size at least 1, and their product no more than memory can hold.
void require_sizes(std::initializer_list<NamedSize> sizes);

/// A count of 0 or more whose rows of `cols` memory can hold.
void require_count(const char* name, int64_t count, int64_t cols);

/// A stride that keeps rows of `cols` apart, where 0 stands for `cols`. Returns it.
int64_t stride_of(const char* name, int64_t stride, int64_t rows, int64_t cols);

/// A number of threads from `least` to kMaxThreads.
void require_threads(int32_t threads, int32_t least);

Phase phase_of(int32_t phase);
Precision precision_of(int32_t precision);

DType dtype_of(int32_t dtype);
/// As `dtype_of`, but only F32, F16 and BF16.
DType float_dtype_of(int32_t dtype);
/// The shape of a tensor: rank, dimensions and their product checked.
Shape shape_of(const hxq_tensor& tensor);
TensorView view_of(const hxq_tensor& tensor);
/// The parts of a matrix as a checkpoint that stores them under `name`.
Checkpoint checkpoint_of(const char* name, const hxq_tensor* parts, size_t count);
/// Every part is one of the codec's, and given once: what nobody reads would be left out in silence.
void require_parts_of(const Codec& codec, const hxq_tensor* parts, size_t count);
/// The shape [rows, cols] that a caller gives, empty for 0, 0.
Shape matrix_shape_of(int64_t rows, int64_t cols);

}  // namespace hxq::capi
