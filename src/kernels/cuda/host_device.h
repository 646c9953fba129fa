#pragma once

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

}  // namespace hxq::cuda
