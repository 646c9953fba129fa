#pragma once

#include <cstddef>
#include <cstdint>

/// Functions that both the kernels and the tests of the host use: which byte, row and level a thread works on.
#ifdef __CUDACC__
#define HXQ_HOST_DEVICE __host__ __device__
#else
#define HXQ_HOST_DEVICE
#endif

namespace hxq::cuda {

template <class T>
HXQ_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

/// The smallest power of two that is not less.
HXQ_HOST_DEVICE constexpr int next_power(int n) { return n <= 1 ? 1 : 2 * next_power((n + 1) / 2); }

template <size_t kMultiple>
constexpr size_t round_up(size_t bytes) {
  return ceil_div(bytes, kMultiple) * kMultiple;
}

HXQ_HOST_DEVICE inline bool is_aligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

}  // namespace hxq::cuda
