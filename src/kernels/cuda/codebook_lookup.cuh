// Lookups of one-byte indices in a table of 256 words of shared memory that is there 32 times, one copy for each bank:
// lane l reads only bank l, so any 32 indices are looked up in one pass.

#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"

namespace hxq::cuda {

inline constexpr int kTableBytes = 256 * 32 * 4;

/// Entry i of lane l is at byte i << 7 | l << 2.
__device__ inline uint32_t table_offset(uint32_t word, int byte, uint32_t lane_offset) {
  const uint32_t shifted = byte == 0 ? word << 7 : word >> (8 * byte - 7);
  return (shifted & 0x7f80u) | lane_offset;
}

/// The table of a block: at an address that the compiler knows, so that a lookup needs no addition.
__device__ inline unsigned char* lookup_table() {
  __shared__ __align__(128) unsigned char table[kTableBytes];
  return table;
}

__device__ inline uint32_t look_up(uint32_t word, int byte, uint32_t lane_offset) {
  return *reinterpret_cast<const uint32_t*>(lookup_table() + table_offset(word, byte, lane_offset));
}

/// The table on its way from the codebook to shared memory: asked for before the weights, so that it does not queue
/// behind them, and written when it is there.
template <int kThreads>
class TableFill {
  static constexpr int kItems = (256 * 8 + kThreads - 1) / kThreads;  ///< 8 threads write the 32 copies of an entry, 16 bytes each

 public:
  __device__ TableFill(const float* codebook, int k) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int entry = (static_cast<int>(threadIdx.x) + i * kThreads) / 8;
      level_[i] = entry < k ? __ldg(codebook + entry) : 0.0f;
    }
  }

  /// `word_of(level)` is what lookups give.
  template <class WordOf>
  __device__ void store(const WordOf& word_of) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (static_cast<int>(threadIdx.x) + i * kThreads >= 256 * 8) break;
      const uint32_t word = word_of(level_[i]);
      reinterpret_cast<uint4*>(lookup_table())[static_cast<int>(threadIdx.x) + i * kThreads] = make_uint4(word, word, word, word);
    }
  }

 private:
  float level_[kItems];
};

/// 16 bytes of weights, read once: kept out of the first-level cache.
__device__ inline uint4 load_bytes_once(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

/// The same from any address: whole words around it, none of which lies behind the word of `last`, the last byte that
/// belongs to the array.
__device__ inline uint4 load_bytes_unaligned(const unsigned char* from, const unsigned char* last) {
  const uint32_t shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from) % 4) * 8;
  const auto* words = reinterpret_cast<const uint32_t*>(from - shift / 8);
  uint32_t w[5];
#pragma unroll
  for (int i = 0; i < 5; ++i) w[i] = reinterpret_cast<const unsigned char*>(words + i) <= last ? __ldg(words + i) : 0u;
  return make_uint4(__funnelshift_r(w[0], w[1], shift), __funnelshift_r(w[1], w[2], shift),
                    __funnelshift_r(w[2], w[3], shift), __funnelshift_r(w[3], w[4], shift));
}

}  // namespace hxq::cuda
