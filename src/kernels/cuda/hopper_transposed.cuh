// Warpgroup products whose right operands lie as they are summed over: a row of shared memory for each of the 16 that
// are summed.

#pragma once

#include "kernels/cuda/hopper.cuh"

namespace hxq::cuda::hopper {

/// A B operand in shared memory, a row for each that is summed over: pieces of 64 columns, in each rows of 64 halves
/// (128 bytes) whose 16-byte pieces are at place piece ^ (row % 8); `stride` bytes from piece to piece.
__device__ inline uint64_t transposed_operand_of(const void* tile, uint32_t stride) {
  return static_cast<uint64_t>((shared_address(tile) & 0x3ffff) >> 4) | uint64_t{stride >> 4} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
/// The operand 16 rows further down: 2,048 bytes.
inline constexpr uint64_t kTransposedStep = 2048 >> 4;

/// d [64, N] = a [64, 16] b [16, N], or is added to where `kAdds`. a as `operand_of` has it.
template <bool kAdds>
__device__ inline void multiply_transposed_async(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, %34, 1, 1, 0, 1;"
      : HXQ_32_SUMS(0)
      : "l"(a), "l"(b), "n"(kAdds ? 1 : 0));
}

template <bool kAdds>
__device__ inline void multiply_transposed_async(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, %66, 1, 1, 0, 1;"
      : HXQ_32_SUMS(0), HXQ_32_SUMS(32)
      : "l"(a), "l"(b), "n"(kAdds ? 1 : 0));
}

/// The same with a from registers.
template <bool kAdds>
__device__ inline void multiply_transposed_async(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, %37, 1, 1, 1;"
      : HXQ_32_SUMS(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdds ? 1 : 0));
}

template <bool kAdds>
__device__ inline void multiply_transposed_async(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, %69, 1, 1, 1;"
      : HXQ_32_SUMS(0), HXQ_32_SUMS(32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdds ? 1 : 0));
}

}  // namespace hxq::cuda::hopper
