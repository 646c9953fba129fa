// How blocks hand elements on through device memory: words of a float and the number of what wrote it. Who needs an
// element reads its word until the number is right.

#pragma once

#include <cstdint>

namespace hxq::cuda {

__device__ inline uint64_t load_word(const uint64_t* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}
__device__ inline bool is_from(uint64_t word, uint32_t number) { return static_cast<uint32_t>(word >> 32) == number; }
__device__ inline float value_of(uint64_t word) { return __uint_as_float(static_cast<uint32_t>(word)); }
__device__ inline float wait_for_word(const uint64_t* from, uint32_t number) {
  uint64_t word = load_word(from);
  while (!is_from(word, number)) word = load_word(from);
  return value_of(word);
}

/// Two adjacent words, aligned to 16 bytes.
struct WordPair {
  uint64_t first, second;
};
__device__ inline bool are_from(const WordPair& pair, uint32_t number) {
  return is_from(pair.first, number) && is_from(pair.second, number);
}
__device__ inline WordPair load_pair(const uint64_t* from) {
  WordPair pair;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(pair.first), "=l"(pair.second)
               : "l"(from)
               : "memory");
  return pair;
}
__device__ inline float2 wait_for_pair(const uint64_t* from, uint32_t number) {
  WordPair pair;
  do {
    pair = load_pair(from);
  } while (!are_from(pair, number));
  return make_float2(value_of(pair.first), value_of(pair.second));
}

__device__ inline void store_word(uint64_t* to, float value, uint32_t number) {
  const uint64_t word = uint64_t{number} << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

}  // namespace hxq::cuda
