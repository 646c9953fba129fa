#pragma once

#include <cstddef>
#include <cstdint>

#include "hxq/tensor.h"
#include "kernels/batch.h"

/// Launchers of the CUDA kernels. They know neither the runtime nor a framework: pointers into device memory, sizes,
/// strides (in elements) and a stream come in, a status goes out. A launcher allocates nothing, synchronises with
/// nothing and reads no device memory, so any sequence of them can be captured in a CUDA graph; what changes from step
/// to step (token ids, positions, states) is read from device memory when the graph runs. Work goes to the device that
/// is current in the calling thread.
namespace hxq::cuda {

/// 0, or a cudaError_t. Numbers, so that this header needs none of CUDA's.
enum class Status : int {
  ok = 0,
  invalid_value = 1,    ///< cudaErrorInvalidValue: sizes, strides or types that the operation does not take
  out_of_memory = 2,    ///< cudaErrorMemoryAllocation
  no_driver = 35,       ///< cudaErrorInsufficientDriver: none, or one that is older than the CUDA of this build
  not_supported = 801,  ///< cudaErrorNotSupported: no kernel of this build runs on this GPU
};

/// One line for people, of static storage.
const char* describe(Status status) noexcept;

/// A cudaStream_t.
using Stream = void*;

/// Activations: [rows, cols] with elements of a row adjacent and rows `stride` elements apart. `dtype`: F32, F16 or
/// BF16.
struct Input {
  const void* data = nullptr;
  int64_t stride = 0;
  DType dtype = DType::f32;
};

struct Output {
  void* data = nullptr;
  int64_t stride = 0;
  DType dtype = DType::f32;
};

/// Memory that a launcher may overwrite; its contents mean nothing before and after. 256-byte aligned.
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
};

/// What tensor cores get of the numbers that they multiply.
enum class Precision : uint8_t {
  exact,  ///< two numbers of 11 bits (binary16 or TF32) for one: errors as in float
  fast,   ///< one of 11 bits
};

using kernels::RowRange;

/// The sequences of a ragged batch, whose rows follow each other in their order. `segments`, `positions` and the
/// addresses of states that operations take per sequence lie in device memory. A segment without rows is skipped, so
/// that a captured graph can serve fewer sequences than it was captured for.
struct Batch {
  const RowRange* segments = nullptr;  // [count]: what rows of the activations belong to each sequence
  const int32_t* positions = nullptr;  // [total_rows]: of each row in its sequence; null where nothing asks for it
  int32_t count = 0;
  int32_t max_rows = 0;    ///< no segment has more rows: sizes the launch
  int32_t total_rows = 0;  ///< no segment ends after this row
};

}  // namespace hxq::cuda
