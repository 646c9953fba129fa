#include "kernels/cpu_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace hxq::kernels {
namespace {

struct Array {
  std::byte* memory;
  size_t bytes;
  unsigned char mark;

  bool is_whole() const {
    return std::all_of(memory, memory + bytes, [&](std::byte b) { return b == std::byte{mark}; });
  }
};

/// Takes and frees arrays of many sizes in a random order; each keeps what was written to it.
void take_and_free(unsigned seed) {
  const size_t sizes[] = {1, 100, 16384, 18432, 98304, 98305, 524288, 524289, 2097152, 5000000};
  std::mt19937 random(seed);
  std::vector<Array> arrays;
  for (int i = 0; i < 400; ++i) {
    if (arrays.size() < 40 && random() % 3 != 0) {
      const size_t bytes = sizes[random() % std::size(sizes)];
      std::byte* memory = allocate_cpu_memory(bytes);
      ASSERT_NE(memory, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
      arrays.push_back({memory, bytes, static_cast<unsigned char>(random())});
      std::memset(memory, arrays.back().mark, bytes);
    } else if (!arrays.empty()) {
      std::swap(arrays[random() % arrays.size()], arrays.back());
      EXPECT_TRUE(arrays.back().is_whole());
      free_cpu_memory(arrays.back().memory, arrays.back().bytes);
      arrays.pop_back();
    }
  }
  for (const Array& array : arrays) {
    EXPECT_TRUE(array.is_whole());
    free_cpu_memory(array.memory, array.bytes);
  }
}

TEST(CpuMemory, ArraysKeepWhatTheyHoldAndSharedPagesAreGivenBack) {
  const size_t before = shared_page_bytes();
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(take_and_free, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(shared_page_bytes(), before);
}

// The states of sequences that come and go must not take more and more pages.
TEST(CpuMemory, PlacesOfFreedArraysAreTakenAgain) {
  constexpr size_t kBytes = 98304;
  std::vector<std::byte*> arrays;
  for (int i = 0; i < 100; ++i) arrays.push_back(allocate_cpu_memory(kBytes));
  const size_t full = shared_page_bytes();
  for (int round = 0; round < 50; ++round) {
    for (size_t i = static_cast<size_t>(round % 3); i < arrays.size(); i += 3) free_cpu_memory(arrays[i], kBytes);
    for (size_t i = static_cast<size_t>(round % 3); i < arrays.size(); i += 3) arrays[i] = allocate_cpu_memory(kBytes);
    EXPECT_EQ(shared_page_bytes(), full);
  }
  for (std::byte* array : arrays) free_cpu_memory(array, kBytes);
}

}  // namespace
}  // namespace hxq::kernels
