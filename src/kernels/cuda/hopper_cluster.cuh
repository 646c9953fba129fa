// What the blocks of a cluster do in each other's shared memory.

#pragma once

#include "kernels/cuda/hopper.cuh"

namespace hxq::cuda::hopper {

/// Arrives at the same barrier of a block of the cluster. It orders nothing but the reads of products that this thread
/// has waited for: to order more would be to wait for all that it has under way.
__device__ inline void arrive_at_block(uint64_t* barrier, uint32_t block) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}

/// To the same place of a block of the cluster.
__device__ inline void store_to_block(const float* at, uint32_t block, float value) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.f32 [there], %2;\n"
      "}" ::"r"(shared_address(at)),
      "r"(block), "f"(value)
      : "memory");
}

/// What lies at the same place of a block of the cluster.
__device__ inline float4 load_from_block(const float4* at, uint32_t block) {
  float4 value;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
      "}"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(shared_address(at)), "r"(block)
      : "memory");
  return value;
}

/// Copies `bytes` to the same place in each block of the cluster whose bit is set; its own barrier counts them there.
__device__ inline void copy_bulk_to_cluster(void* to, const void* from, uint32_t bytes, uint64_t* barrier,
                                            uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
}

}  // namespace hxq::cuda::hopper
