#pragma once

#include <cstddef>
#include <cstdint>

#include "hxq/tensor.h"

namespace hxq::kernels {

/// A dense matrix in the source's own type (F32, F16 or BF16), row-major, possibly unaligned.
struct DenseMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::f32;
  const std::byte* data = nullptr;
};

}  // namespace hxq::kernels
