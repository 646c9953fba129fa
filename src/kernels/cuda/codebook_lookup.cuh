// Lookups of one-byte indices in a table of 256 words of shared memory that is there 32 times, one copy for each bank:
// lane l reads only bank l, so any 32 indices are looked up in one pass.

#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"

extern __shared__ __align__(1024) unsigned char dynamic_shared[];

namespace hxq::cuda {

/// Where dynamic shared memory starts: what the system keeps lies before it. As a constant it costs no addition.
#if __CUDA_ARCH__ >= 900
inline constexpr uint32_t kDynamicStart = 1024;
#else
inline constexpr uint32_t kDynamicStart = 0;
#endif

/// The table at the start of dynamic shared memory: entry i of lane l is at i << 7 | l << 2 from there.
class SmallTable {
 public:
  static constexpr uint32_t kBytes = 32768;

  __device__ SmallTable() : lane_(threadIdx.x % 32 * 4) {
    if (__cvta_generic_to_shared(dynamic_shared) != kDynamicStart) __trap();
    asm("" : "+r"(lane_));  // else its computation is repeated with each lookup
  }

  __device__ float look_up(uint32_t word, int byte) const {
    const uint32_t shifted = byte == 0 ? word << 7 : word >> (8 * byte - 7);
    float entry;
    asm("ld.shared.f32 %0, [%1 + %2];" : "=f"(entry) : "r"((shifted & 0x7f80u) | lane_), "n"(kDynamicStart));
    return entry;
  }

  /// Levels of 16 indices, all of which are asked for before the first is used: for few warps, which wait for each.
  __device__ void look_up_all(const uint4& bytes, float (&entry)[16]) const {
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t shifted = i % 4 == 0 ? words[i / 4] << 7 : words[i / 4] >> (8 * (i % 4) - 7);
      asm volatile("ld.shared.f32 %0, [%1 + %2];"
                   : "=f"(entry[i])
                   : "r"((shifted & 0x7f80u) | lane_), "n"(kDynamicStart));
    }
  }

 private:
  uint32_t lane_;
};

/// 256 words, 32 times, one copy for each bank. Entry i of lane l is at i << 8 | l << 2 from a multiple of the table's
/// size, which one byte permutation gives: half of the memory is unused.
struct WideTable {
  /// What all lookups of a lane have in common. Addresses of a block name its place in the cluster, too.
  __device__ static uint32_t lane_base(const void* table) {
    uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(table)) | threadIdx.x % 32 * 4;
    asm("" : "+r"(base));  // else its computation is repeated with each lookup
    return base;
  }
  __device__ static uint32_t look_up(uint32_t lane_base, uint32_t word, int byte) {
    uint32_t value;
    asm("ld.shared.u32 %0, [%1];"
        : "=r"(value)
        : "r"(__byte_perm(word, lane_base, 0x7604u | static_cast<uint32_t>(byte) << 4)));
    return value;
  }
  __device__ static void store(uint32_t lane_base, int entry, int copies, uint32_t value) {
    const uint32_t address = lane_base / 128 * 128 + static_cast<uint32_t>(entry) * 256 + copies * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(value) : "memory");
  }
};

/// The same in half of the memory, at i << 7 | l << 2: two operations an address.
struct NarrowTable {
  static constexpr uint32_t kBytes = 32768;

  __device__ static uint32_t lane_base(const void* table) { return WideTable::lane_base(table); }
  __device__ static uint32_t look_up(uint32_t lane_base, uint32_t word, int byte) {
    const uint32_t shifted = byte == 0 ? word << 7 : word >> (8 * byte - 7);
    uint32_t value;
    asm("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"((shifted & 0x7f80u) | lane_base));
    return value;
  }
  __device__ static void store(uint32_t lane_base, int entry, int copies, uint32_t value) {
    const uint32_t address = lane_base / 128 * 128 + static_cast<uint32_t>(entry) * 128 + copies * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(value) : "memory");
  }
};

/// The table at the start of dynamic shared memory as a `WideTable`: what lies between its entries is for others.
class SpreadTable {
 public:
  static constexpr uint32_t kBytes = 65536, kEntryBytes = 256, kGap = 128;

  __device__ SpreadTable()
      : lane_base_(static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared)) - kDynamicStart) {
    if (lane_base_ % kBytes != 0) __trap();
    lane_base_ |= threadIdx.x % 32 * 4;  // beside the block's place in its cluster
    asm("" : "+r"(lane_base_));          // else its computation is repeated with each lookup
  }

  __device__ uint32_t look_up_word(uint32_t word, int byte) const {
    uint32_t entry;
    asm("ld.shared.u32 %0, [%1 + %2];"
        : "=r"(entry)
        : "r"(__byte_perm(word, lane_base_, 0x7604u | static_cast<uint32_t>(byte) << 4)), "n"(kDynamicStart));
    return entry;
  }
  __device__ float look_up(uint32_t word, int byte) const { return __uint_as_float(look_up_word(word, byte)); }

  __device__ static void store(uint32_t, int entry, int copies, uint32_t value) {
    *reinterpret_cast<uint4*>(dynamic_shared + static_cast<uint32_t>(entry) * kEntryBytes + copies * 16) =
        make_uint4(value, value, value, value);
  }

 private:
  uint32_t lane_base_;
};

/// Two tables of levels from kAt of dynamic shared memory on, each 32 times, one copy for each bank: entry i of lane l
/// is at i << 8 | table << 7 | l << 2 from a multiple of their size, which one byte permutation gives.
template <uint32_t kAt>
struct LevelTables {
  /// What all lookups of a lane have in common.
  __device__ static uint32_t lane_base(int table, int lane) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared + kAt)) |
           static_cast<uint32_t>(table << 7 | lane << 2);
  }
  /// Where the program has it: tables change.
  __device__ static float look_up(uint32_t lane_base, uint32_t word, int byte) {
    float level;
    asm volatile("ld.shared.f32 %0, [%1];"
                 : "=f"(level)
                 : "r"(__byte_perm(word, lane_base, 0x7604u | static_cast<uint32_t>(byte) << 4))
                 : "memory");
    return level;
  }
  /// Adjacent entries, by adjacent threads: each begins with another copy, as all lie in the same banks.
  template <int kEntries>
  __device__ static void fill(int table, int entry, const float (&level)[kEntries]) {
    unsigned char* to = dynamic_shared + kAt + entry * 256 + table * 128;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int copy = (i + entry / kEntries) % 8;
#pragma unroll
      for (int e = 0; e < kEntries; ++e) {
        *reinterpret_cast<float4*>(to + e * 256 + copy * 16) = make_float4(level[e], level[e], level[e], level[e]);
      }
    }
  }
};

/// The table on its way from the codebook to shared memory: asked for before the weights, so that it does not queue
/// behind them, and written when it is there.
template <int kThreads>
class TableFill {
  static constexpr int kItems =
      (256 * 8 + kThreads - 1) / kThreads;  ///< 8 threads write the 32 copies of an entry, 16 bytes each

 public:
  __device__ TableFill(const float* codebook, int k) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int entry = (static_cast<int>(threadIdx.x) + i * kThreads) / 8;
      level_[i] = entry < k ? __ldg(codebook + entry) : 0.0f;
    }
  }

  /// `word_of(level)` is what lookups give.
  template <class Table, class WordOf>
  __device__ void store(uint32_t lane_base, const WordOf& word_of) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = static_cast<int>(threadIdx.x) + i * kThreads;
      if (item < 256 * 8) Table::store(lane_base, item / 8, item % 8, word_of(level_[i]));
    }
  }

  /// For a `SmallTable`. `entry_of(level)` is what lookups give.
  template <class EntryOf>
  __device__ void store(const EntryOf& entry_of) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = static_cast<int>(threadIdx.x) + i * kThreads;
      const float entry = entry_of(level_[i]);
      if (item < 256 * 8) {
        *reinterpret_cast<float4*>(dynamic_shared + item / 8 * 128 + item % 8 * 16) =
            make_float4(entry, entry, entry, entry);
      }
    }
  }
  __device__ void store() const {
    store([](float level) { return level; });
  }

 private:
  float level_[kItems];
};

/// A level as two binary16 numbers: the upper in the lower half of the word, what it lacks in the other half.
__device__ inline uint32_t two_halves(float level) {
  const __half high = __float2half_rn(level);
  const __half low = __float2half_rn(level - __half2float(high));
  return static_cast<uint32_t>(__half_as_ushort(high)) | static_cast<uint32_t>(__half_as_ushort(low)) << 16;
}

/// 16 bytes of weights from any address.
__device__ inline uint4 load_bytes_unaligned(const unsigned char* from, const unsigned char* last) {
  uint32_t w[4];
  load_words_unaligned(from, last, w);
  return make_uint4(w[0], w[1], w[2], w[3]);
}

}  // namespace hxq::cuda
