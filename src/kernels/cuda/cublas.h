#pragma once

#include <cstdint>

#include "kernels/cuda/types.h"

/// cuBLAS, found while the program runs: the copy that the process has loaded already, or the system's. Nothing here is
/// needed to build, and without it the project's own kernels multiply.
namespace hxq::cuda {

/// Opens the library for the current device. Not while a graph is captured; later calls cost nothing.
/// Returns whether it is there.
bool open_cublas() noexcept;

/// Whether `open_cublas` has found it for the current device.
bool has_cublas() noexcept;

/// y [tokens, rows] = x [tokens, cols] w [rows, cols]^T (+ y). x and w: BF16, y: BF16 or F32; or all of F32, in float.
Status cublas_product(const void* w, int64_t rows, int64_t cols, const Input& x, const Output& y, int64_t tokens,
                      bool accumulate, Stream stream) noexcept;

}  // namespace hxq::cuda
