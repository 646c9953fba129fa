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

/// The address of the same place in a block of the cluster, for the functions below.
__device__ inline uint32_t address_in_block(const void* at, uint32_t block) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(at)), "r"(block));
  return there;
}

__device__ inline float load_there(uint32_t address) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}

/// Writes to a block of the cluster; a barrier of that block counts the bytes, and who waits for it sees them.
__device__ inline void store_there(uint32_t address, float value, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address), "f"(value),
               "r"(barrier)
               : "memory");
}
__device__ inline void store_there(uint32_t address, float2 value, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address),
               "f"(value.x), "f"(value.y), "r"(barrier)
               : "memory");
}
__device__ inline void store_there(uint32_t address, float4 value, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
      : "memory");
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
