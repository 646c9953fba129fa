// Products of a warp by tensor cores, of any GPU since 8.0, into float: d [16, 8] += a [16, 16] b [16, 8] of binary16,
// d [16, 8] += a [16, 8] b [8, 8] of TF32. Which elements a lane holds: BlockPlace and ResultPlace in
// tensor_core_places.h; of TF32, rows and columns of a are l / 4 and l % 4, and 8 and 4 further.

#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace hxq::cuda {

__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same of BF16.
__device__ inline void multiply_add_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t to_tf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

__device__ inline void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 blocks of halves from shared memory; lanes 8 i to 8 i + 7 say where the rows of block i lie.
__device__ inline void load_blocks(uint32_t (&out)[4], const __half* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}

__device__ inline void load_blocks_transposed(uint32_t (&out)[4], const __half* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}

__device__ inline uint32_t bits_of(__half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); }

/// Two numbers as binary16, and what those lack.
template <int kParts>
__device__ inline void split(float x, float y, uint32_t (&parts)[kParts]) {
  const __half2 high = __floats2half2_rn(x, y);
  parts[0] = bits_of(high);
  if constexpr (kParts == 2) parts[1] = bits_of(__floats2half2_rn(x - __low2float(high), y - __high2float(high)));
}

/// d, two blocks of 8 columns side by side for each 16 rows, += a b.
template <int kRowTiles, int kLeftParts, int kRightParts>
__device__ inline void multiply_parts(float (&d)[kRowTiles][2][4], const uint32_t (&a)[kLeftParts][kRowTiles][4],
                                      const uint32_t (&b)[kRightParts][4]) {
#pragma unroll
  for (int part = kLeftParts - 1; part >= 0; --part) {
#pragma unroll
    for (int other = kRightParts - 1; other >= 0; --other) {
      if (part + other == 2) continue;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < 2; ++n) multiply_add(d[m][n], a[part][m], b[other][2 * n], b[other][2 * n + 1]);
      }
    }
  }
}

}  // namespace hxq::cuda
